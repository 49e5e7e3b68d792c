"""Trust regions that damp a step instead of cutting it, or cut it whichever way it goes; each looks at its token alone.

r = π / μ, A the advantage. What is second hand is marked †: taken from other implementations, not from the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.precision import wide
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs


@dataclass(frozen=True)
class SPO:
    """Simple policy optimization (2401.16025): w = 1 − sign(A)·(r − 1) / threshold.

    Beyond the threshold the weight is negative and pulls back. It has no bound where μ is small.
    """

    threshold: float = 0.2
    top_k: int = 0

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """Falls in a line as the ratio goes the way the advantage pushes."""
        return 1 - advantages.sign() * (unmoved_ratio(now, old) - 1) / self.threshold


@dataclass(frozen=True)
class DRPO:
    """Divergence-regularized policy optimization (2606.09821): w = 1 − sign(A)·(π − μ) / threshold.

    The weight stays within 1 ± 1 / threshold. 12.5 is the published threshold†, which bends it by 8 % at most; 0.15 to
    1 bends it more.
    """

    threshold: float = 12.5
    top_k: int = 0

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """Falls in a line as the probability goes the way the advantage pushes."""
        return 1 - advantages.sign() * (wide(now.sampled).exp() - wide(old.sampled).exp()) / self.threshold


@dataclass(frozen=True)
class SAPO:
    """Soft adaptive policy optimization (2511.20347): w = 4p(1 − p), p = σ(τ(r − 1)), with a τ for each sign of A."""

    tau: float = 1.0
    tau_negative: float = 1.05
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """A token on its way back is damped too."""
        return {"returning": "its bell is the same on both sides"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """A bell around r = 1."""
        ratio = unmoved_ratio(now, old)
        tau = torch.full_like(ratio, self.tau_negative).masked_fill(advantages > 0, self.tau)
        share = torch.sigmoid(tau * (ratio - 1))
        return 4 * share * (1 - share)


@dataclass(frozen=True)
class DIS:
    """The region of SAO (2607.07508): a token counts where low ≤ r ≤ high, whatever the sign of A. Its band is †."""

    low: float = 0.2
    high: float = 4.0
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """A token on its way back is dropped too."""
        return {"returning": "outside the band nothing counts, whatever the sign"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """1 inside the band, 0 outside."""
        ratio = unmoved_ratio(now, old)
        return ((ratio >= self.low) & (ratio <= self.high)).to(ratio.dtype)


@dataclass(frozen=True)
class CISPO:
    """CISPO (2506.13585; its band of ScaleRL, 2510.13786): no token is dropped, the ratio it counts with is clamped."""

    low: float = 0.0
    high: float = 5.0
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """A token on its way back from beyond the band counts less too."""
        return {"returning": "the ratio is clamped whatever the sign"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """clamp(r, low, high) / r, so that r times the weight is the clamped ratio."""
        ratio = unmoved_ratio(now, old)
        return ratio.clamp(self.low, self.high) / ratio


def unmoved_ratio(now: TokenLogprobs, old: TokenLogprobs) -> Float[Tensor, " actions"]:
    """π / μ of the sampled tokens, and 1 where both are the same, of probability 0 too."""
    ratio = probability_ratio(now.sampled, old.sampled)
    return torch.where(now.sampled == old.sampled, torch.ones_like(ratio), ratio)
