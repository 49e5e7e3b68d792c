"""How far a step may go: a trust region is a weight on the gradient of every token.

The classical ones are masks: 0 where the policy has left the region at a token *and* its advantage pushes it further
out, else 1. `soft_regions` has those that damp, `row_regions` those that look at the whole row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.divergences import binary_kl, binary_tv, topk_kl, topk_tv
from nearstep.algorithm.losses import absolute_surrogate, clipped_surrogate, probability_ratio
from nearstep.algorithm.precision import wide
from nearstep.algorithm.ragged import row_numbers


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probs of one policy at every action: of the sampled token, and of the recorded top tokens."""

    sampled: Float[Tensor, " actions"]
    top: Float[Tensor, "actions k"] | None = None


@dataclass(frozen=True)
class ActionRows:
    """Where the rows of a batch end, and which policy sampled them. The actions of all rows lie back to back."""

    action_counts: Int[Tensor, " rows"]
    policy_versions: Int[Tensor, " rows"]  # where weights changed within a row the oldest
    action_versions: Int[Tensor, " actions"] | None = None  # of each action, where weights changed within a row
    turn_starts: Bool[Tensor, " actions"] | None = None  # actions that begin a turn; None where nobody says

    @property
    def versions(self) -> Int[Tensor, " actions"]:
        """Which policy sampled each action."""
        if self.action_versions is not None:
            return self.action_versions
        return self.policy_versions[row_numbers(self.action_counts)]


@runtime_checkable
class TrustRegion(Protocol):
    """A trust region: how far a step may move a token. Any frozen dataclass with these two members is one."""

    @property
    def top_k(self) -> int:
        """How many top tokens the engine must record at each action; 0 for none."""

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """The factor on the gradient −A·r·∇log π of every token: 1 keeps it, 0 drops it. `now` carries no gradient."""


@runtime_checkable
class DeclaresExceptions(Protocol):
    """A region that breaks laws of `nearstep.testing` on purpose: their names, and why."""

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Why, by the name of the law."""


@dataclass(frozen=True)
class LoggedLoss:
    """What is logged of a region whose objective has a value of its own; its gradient is not changed by it."""

    loss: Float[Tensor, " actions"]  # loss/policy_avg
    absolute: Float[Tensor, " actions"]  # loss/policy_abs
    ratio: Float[Tensor, " actions"]  # val/ratio_clamped: the ratio as the objective holds it


@runtime_checkable
class LogsOwnLoss(Protocol):
    """A region whose objective differs in value from the importance-weighted policy gradient, which is logged else."""

    def logged(self, ratio: Float[Tensor, " actions"], advantages: Float[Tensor, " actions"]) -> LoggedLoss:
        """The objective's value at ratios to the anchor, as a loss."""


@dataclass(frozen=True)
class Clip:
    """PPO's clipping (1707.06347, eq. 7) as a mask: its gradient is zero exactly where the weight is."""

    low: float = 0.2
    high: float = 0.2
    dual: float | None = None
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Dual clipping drops tokens on their way back."""
        return {} if self.dual is None else {"returning": "dual clipping bounds the loss of negative advantages"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """0 where the ratio is above 1 + high with an advantage above 0, or below 1 − low with one below 0; else 1.

        With `dual` also 0 where it is above `dual` with an advantage below 0: there the loss is bounded (1912.09729).
        """
        ratio = probability_ratio(now.sampled, old.sampled)
        too_high = (advantages > 0) & (ratio > 1 + self.high)
        too_low = (advantages < 0) & (ratio < 1 - self.low)
        if self.dual is not None:
            too_low = too_low | ((advantages < 0) & (ratio > self.dual))
        return (~(too_high | too_low)).to(ratio.dtype)

    def logged(self, ratio: Float[Tensor, " actions"], advantages: Float[Tensor, " actions"]) -> LoggedLoss:
        """PPO's own loss, which is flat where its gradient is 0."""
        return LoggedLoss(
            clipped_surrogate(ratio, advantages, low=self.low, high=self.high, dual=self.dual),
            absolute_surrogate(ratio, advantages, low=self.low, high=self.high),
            ratio.clamp(1 - self.low, 1 + self.high),
        )


@dataclass(frozen=True)
class BinaryTV:
    """Divergence PPO (2602.04879) by total variation of the sampled token against all others."""

    low: float = 0.15
    high: float = 0.15
    top_k: int = 0

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """See `divergence_mask`."""
        divergence = binary_tv(now.sampled, old.sampled)
        return divergence_mask(divergence, now.sampled, old.sampled, advantages, low=self.low, high=self.high)


@dataclass(frozen=True)
class BinaryKL:
    """Divergence PPO (2602.04879) by KL(μ ‖ π) of the sampled token against all others."""

    low: float = 0.05
    high: float = 0.05
    top_k: int = 0

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """See `divergence_mask`."""
        divergence = binary_kl(now.sampled, old.sampled)
        return divergence_mask(divergence, now.sampled, old.sampled, advantages, low=self.low, high=self.high)


@dataclass(frozen=True)
class TopKTV:
    """Divergence PPO (2602.04879) by total variation over the recorded top tokens and one bucket for the rest."""

    low: float = 0.15
    high: float = 0.15
    top_k: int = 20

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """See `divergence_mask`."""
        divergence = topk_tv(*_recorded(now, old))
        return divergence_mask(divergence, now.sampled, old.sampled, advantages, low=self.low, high=self.high)


@dataclass(frozen=True)
class TopKKL:
    """Divergence PPO (2602.04879) by KL(μ ‖ π) over the recorded top tokens and one bucket for the rest."""

    low: float = 0.05
    high: float = 0.05
    top_k: int = 20

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """See `divergence_mask`."""
        divergence = topk_kl(*_recorded(now, old))
        return divergence_mask(divergence, now.sampled, old.sampled, advantages, low=self.low, high=self.high)


@dataclass(frozen=True)
class Unbounded:
    """No trust region: the importance-weighted policy gradient."""

    top_k: int = 0

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """1 everywhere."""
        return torch.ones_like(wide(advantages))


def divergence_mask(
    divergence: Float[Tensor, " actions"],
    now: Float[Tensor, " actions"],
    old: Float[Tensor, " actions"],
    advantages: Float[Tensor, " actions"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, " actions"]:
    """0 where the divergence is above its threshold and the step would move the token further out, else 1.

    That is π > μ with a positive advantage (threshold `high`), or π < μ with another (threshold `low`). A
    divergence equal to its threshold is inside. Source: 2602.04879, and the code of its authors.
    """
    rising = (advantages > 0) & (now > old) & (divergence > high)
    falling = (advantages <= 0) & (now < old) & (divergence > low)
    return (~(rising | falling)).to(divergence.dtype)


def _recorded(now: TokenLogprobs, old: TokenLogprobs) -> tuple[Tensor, Tensor]:
    """The log-probs of the recorded top tokens under both policies."""
    assert now.top is not None, "this region asks the engine for top tokens"
    assert old.top is not None, "this region asks the engine for top tokens"
    return now.top, old.top
