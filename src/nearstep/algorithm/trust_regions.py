"""Which tokens may still move the policy: a trust region is a mask over tokens.

A token is left out where the policy has left the region there *and* its advantage pushes it further out.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.algorithm.losses import probability_ratio


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of one policy at every action: of the sampled token, and of the recorded top tokens if "
    "asked for."""

    sampled: Float[Tensor, " actions"]
    top: Float[Tensor, "actions k"] | None = None


@runtime_checkable
class TrustRegion(Protocol):
    """What a trust region says. A frozen dataclass with these two members is one."""

    @property
    def top_k(self) -> int:
        """How many top tokens the engine shall record at each action; 0 for none."""

    def inside(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"]
    ) -> Bool[Tensor, " actions"]:
        """True where the token keeps its gradient. `now` carries no gradient here."""


@dataclass(frozen=True)
class Clip:
    """PPO's clipping (1707.06347, eq. 7) as a mask: its gradient is zero exactly where this is false."""

    low: float = 0.2
    high: float = 0.2
    top_k: int = 0

    def inside(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"]
    ) -> Bool[Tensor, " actions"]:
        """False where the ratio is above 1 + high and shall rise, or below 1 − low and shall fall."""
        ratio = probability_ratio(now.sampled, old.sampled)
        too_high = (advantages > 0) & (ratio > 1 + self.high)
        too_low = (advantages < 0) & (ratio < 1 - self.low)
        return ~(too_high | too_low)
