"""Which finished groups train: gates that look at all responses to a prompt, once they are scored."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class FinishedGroups:
    """The responses to some prompts, over all processes and the same on each: one line for each prompt.

    Scores and returns are NaN where no reward source answered.
    """

    scores: Float[Tensor, "groups size"]  # as the rewards gave them, token rewards included
    returns: Float[Tensor, "groups size"]  # after the rules for scores, discounted to the prompt, without a KL penalty
    lengths: Int[Tensor, "groups size"]  # in tokens
    finished: Bool[Tensor, "groups size"]  # ended by a stop token, not cut off
    values: Float[Tensor, "groups size"] | None = None  # the critic's of the prompt; None where the gate needs none
    parts: Mapping[str, Float[Tensor, "groups size"]] = field(default_factory=dict)  # of the reward, before weights

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, groups: Int[Tensor, " chosen"]) -> "FinishedGroups":
        """The given groups, in the given order."""
        return FinishedGroups(
            self.scores[groups],
            self.returns[groups],
            self.lengths[groups],
            self.finished[groups],
            None if self.values is None else self.values[groups],
            {name: part[groups] for name, part in self.parts.items()},
        )


@runtime_checkable
class Gate(Protocol):
    """Keeps or drops whole groups. Any frozen dataclass with these two members is one; a gate that knows more than it
    is given has those of Remembers beside them."""

    @property
    def needs_values(self) -> bool:
        """Whether it reads the critic's value of the prompt; a run without a critic is then refused."""

    def keep(self, groups: FinishedGroups) -> Bool[Tensor, " groups"]:
        """Which groups train. Every process asks with the same groups, so that all decide alike."""


@dataclass(frozen=True)
class ScoreRange:
    """Keeps groups whose scores differ by more than `low`, and by no more than `high`.

    Where all responses score alike, an advantage against the group is 0 and teaches nothing: the dynamic sampling of
    DAPO (2503.14476, section 3.2).
    """

    low: float = 0.0
    high: float = math.inf
    needs_values: bool = False

    def keep(self, groups: FinishedGroups) -> Bool[Tensor, " groups"]:
        """By the range of the responses that were scored; a group with none is dropped."""
        scored = ~groups.scores.isnan()
        largest = groups.scores.masked_fill(~scored, -math.inf).amax(1)
        smallest = groups.scores.masked_fill(~scored, math.inf).amin(1)
        spread = largest - smallest  # −∞ where nothing was scored
        return (spread > self.low) & (spread <= self.high)


@dataclass(frozen=True)
class MeanScore:
    """Keeps groups whose mean score lies between `low` and `high`, the ends left out: neither too hard nor too easy."""

    low: float = -math.inf
    high: float = math.inf
    needs_values: bool = False

    def keep(self, groups: FinishedGroups) -> Bool[Tensor, " groups"]:
        """By the mean of the responses that were scored; a group with none is dropped."""
        mean = groups.scores.nanmean(1)
        return (mean > self.low) & (mean < self.high)


@dataclass(frozen=True)
class ValueGap:
    """Keeps groups whose mean abs(R − V(prompt)) is more than `low`, and of them the `share` with the largest.

    A critic gives a gate that needs no groups: what it foresaw teaches little.
    """

    low: float = 0.0
    share: float = 1.0
    needs_values: bool = True

    def keep(self, groups: FinishedGroups) -> Bool[Tensor, " groups"]:
        """By the gap of the responses that were scored. Of gaps that are alike the first are kept."""
        assert groups.values is not None
        gap = (groups.returns - groups.values).abs().nanmean(1)
        gap = torch.where(gap > self.low, gap, -math.inf)  # NaN, too: where nothing was scored
        most = math.ceil(self.share * len(gap) - 1e-9)  # 0.7 of ten is seven, though 0.7 × 10 is a little more
        first = torch.zeros(len(gap), dtype=torch.bool, device=gap.device)
        first[gap.argsort(descending=True, stable=True)[:most]] = True
        return first & gap.isfinite()


def gate_problem(kept: object, groups: int) -> str | None:
    """What is wrong with the answer of a gate, in words; None where nothing is."""
    if not isinstance(kept, Tensor):
        return f"keep returned a {type(kept).__name__}; return a tensor with true for every group that trains"
    if kept.dtype != torch.bool or list(kept.shape) != [groups]:
        return f"keep returned {kept.dtype} of shape {list(kept.shape)} for {groups} groups; return one bool for each"
    return None
