"""What is a source of rewards, and how several are added up: weighted, each by its name, None left out."""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.errors import ConfigError, RewardError, shorten
from nearstep.rewards.batch import Answer, RewardBatch, reward_batch
from nearstep.rewards.event_loop import EventLoop
from nearstep.rewards.values import LARGEST_REWARD, read_values
from nearstep.types import Prompts, Rollout, Scores


@runtime_checkable
class RewardSource(Protocol):
    """Anything that judges a batch: at once, or by an awaitable, awaited together with those of other sources."""

    @property
    def name(self) -> str:
        """Under which its part of the reward is reported."""

    def score(self, batch: RewardBatch) -> Answer | Awaitable[Answer]:
        """One value per row, None where the reward does not apply."""


class Rewards:
    """The weighted sum of several sources."""

    def __init__(
        self,
        sources: Sequence[RewardSource],
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: Sequence[float] | None = None,
        state: Callable[[], object] = lambda: None,
    ) -> None:
        """Without `weights` each source weighs 1; `tokenizer` is the policy's, `state()` the trainer's state.

        Raises a ConfigError where the weights are not one finite number for each source.
        """
        self.sources = list(sources)
        self.names = _distinct(source.name for source in sources)
        self.weights = [1.0] * len(self.sources) if weights is None else list(weights)
        _check_weights(self.weights, self.names)
        self._tokenizer = tokenizer
        self._state = state
        self._event_loop = EventLoop()

    def __call__(self, prompts: Prompts, rollout: Rollout) -> Scores:
        """Judge every row; raises a RewardError where a source fails or returns what is no reward."""
        batch = reward_batch(prompts, rollout, self._tokenizer, self._state())
        answers = self._ask(batch)
        values = [read_values(a.values, batch, name) for a, name in zip(answers, self.names, strict=True)]
        parts = torch.tensor(values, dtype=torch.float64)
        total = self._add_up(parts, batch)
        device = rollout.tokens.device
        return Scores(
            total=total.float().to(device),
            parts={name: part.float().to(device) for name, part in zip(self.names, parts, strict=True)},
            extras=self._extras(answers, batch),
            metrics=_means(answers),
        )

    def _ask(self, batch: RewardBatch) -> list[Answer]:
        """Plain sources one after another, then all awaitables together."""
        said = [source.score(batch) for source in self.sources]
        waiting = [answer for answer in said if not isinstance(answer, Answer)]
        arrived = iter(self._event_loop.gather(waiting))
        return [answer if isinstance(answer, Answer) else next(arrived) for answer in said]

    def _add_up(self, parts: Float[Tensor, "sources rows"], batch: RewardBatch) -> Float[Tensor, " rows"]:
        """Σ weight · part over the parts that apply."""
        uncovered = parts.isnan().all(dim=0)
        if uncovered.any():
            row = int(uncovered.nonzero()[0])
            raise RewardError(
                f"no reward applies to {batch.place(row)}, completion {shorten(batch.completions[row])}: "
                f"{', '.join(self.names)} returned None. A made-up 0 would be learned from; "
                "let at least one reward judge every row."
            )
        total = (torch.tensor(self.weights, dtype=torch.float64)[:, None] * parts).nansum(dim=0)
        excessive = total.abs() > LARGEST_REWARD
        if excessive.any():
            row = int(excessive.nonzero()[0])
            raise RewardError(
                f"the weighted sum of {', '.join(self.names)} is {total[row]:g} for {batch.place(row)}: "
                f"beyond ±{LARGEST_REWARD:g} the value loss would overflow. Lower the weights."
            )
        return total

    def _extras(self, answers: list[Answer], batch: RewardBatch) -> dict[str, list[object]]:
        logged = [
            (source, column, values)
            for source, answer in zip(self.names, answers, strict=True)
            for column, values in answer.extras.items()
        ]
        for source, column, values in logged:
            if len(values) != len(batch):
                raise RewardError(
                    f"reward {source!r} logged {len(values)} values as extra column {column!r} "
                    f"for {len(batch)} completions: log one for each."
                )
        columns = _distinct(column for _, column, _ in logged)
        return {column: values for column, (_, _, values) in zip(columns, logged, strict=True)}


def _check_weights(weights: list[float], names: list[str]) -> None:
    if not names:
        raise ConfigError("there is no reward: give a reward model, reward functions, or both")
    if len(weights) != len(names):
        raise ConfigError(
            f"{len(weights)} reward weight(s) for {len(names)} reward(s) ({', '.join(names)}): "
            "give one for each, the reward model's first"
        )
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise ConfigError(f"the weight of reward {name!r} is {weight}: give a finite number")


def _distinct(names: Iterable[str]) -> list[str]:
    """The same names, a repeated one with the first free number behind it: a, a give a, a_2."""
    taken: list[str] = []
    for name in names:
        free, number = name, 2
        while free in taken:
            free, number = f"{name}_{number}", number + 1
        taken.append(free)
    return taken


def _means(answers: list[Answer]) -> dict[str, float]:
    logged: dict[str, list[float]] = {}
    for answer in answers:
        for name, values in answer.metrics.items():
            logged.setdefault(name, []).extend(values)
    return {name: sum(values) / len(values) for name, values in logged.items()}
