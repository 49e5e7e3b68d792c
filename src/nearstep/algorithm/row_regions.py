"""Trust regions that look at the whole row of a token. Rows do not influence one another, so no split changes a number.

r = π / μ, A the advantage, D = |π − μ| the total variation of the sampled token against all others. What is second hand
is marked †: taken from other implementations, not from the paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.divergences import binary_tv
from nearstep.algorithm.ragged import by_row
from nearstep.algorithm.soft_regions import unmoved_ratio
from nearstep.algorithm.trust_regions import ActionRows, Clip, TokenLogprobs

LEAST_SAVING, MOST_SAVING, SAVING_QUANTILE = 0.02, 0.04, 0.9  # of CPPO†


@dataclass(frozen=True)
class CPPO:
    """A budget of divergence along the row (2606.10968†): what early tokens have used, later ones cannot.

    With u falling in a line from 1 at the first token to `floor` at the last, a token that moves out is kept where
    u·D ≤ min(threshold, threshold + Σ_before u·(b − D)); b is the 0.9 quantile of D in the row, within [0.02, 0.04].
    """

    threshold: float = 0.15
    floor: float = 0.8
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """It has a budget for the row."""
        return {"own_token": "what earlier tokens of the row have used is gone"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """0 where a token moves out and beyond what is left of the budget, else 1."""
        within = by_row(binary_tv(now.sampled, old.sampled), rows.action_counts, self._within_budget)
        outward = advantages * (unmoved_ratio(now, old) - 1) > 0
        return torch.where(outward, within, 1)

    def _within_budget(self, moved: Float[Tensor, " actions"]) -> Float[Tensor, " actions"]:
        scale = 1 - (1 - self.floor) * torch.arange(len(moved), device=moved.device) / max(len(moved) - 1, 1)
        allowed = torch.quantile(moved, SAVING_QUANTILE).clamp(LEAST_SAVING, MOST_SAVING)
        saved = scale * (allowed - moved)
        left = self.threshold + saved.cumsum(0) - saved
        return (scale * moved <= left.clamp(max=self.threshold)).to(moved.dtype)


@dataclass(frozen=True)
class TRM:
    """Trust region masking (2512.23075): a row is dropped whole where D exceeds the threshold at any of its tokens."""

    threshold: float = 0.15
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """The whole row goes."""
        reason = "one token drops its whole row"
        return {"own_token": reason, "returning": reason}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """0 for every token of a row that has left the region, else 1."""
        moved = binary_tv(now.sampled, old.sampled)
        return by_row(
            moved, rows.action_counts, lambda row: (row.amax() <= self.threshold).to(row.dtype).expand_as(row)
        )


@dataclass(frozen=True)
class VACO:
    """The row filter of VACO (2603.01365): where the row's mean of |r − 1| exceeds the threshold, no token moves out.

    The advantages that the paper realigns by V-trace stay as they are. The default threshold is ours.
    """

    threshold: float = 0.2
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """It takes the mean of the row."""
        return {"own_token": "the mean of the row decides"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """0 where the row has left the region and the token moves out, else 1."""
        ratio = unmoved_ratio(now, old)
        within = by_row(
            (ratio - 1).abs(), rows.action_counts, lambda row: (row.mean() <= self.threshold).expand_as(row)
        )
        return (within | (advantages * (ratio - 1) <= 0)).to(ratio.dtype)


@dataclass(frozen=True)
class SAT:
    """PPO's clip, with a narrower band for the tokens of a row that moved most (2607.18722†).

    The band is `contraction` times as wide for the `share` of a row's tokens of the largest |log r|. We take the
    quantile over the row, not the batch, so that no split into micro-batches changes a number.
    """

    low: float = 0.2
    high: float = 0.2
    share: float = 0.1
    contraction: float = 0.5
    top_k: int = 0

    @property
    def exceptions(self) -> Mapping[str, str]:
        """It compares the tokens of a row."""
        return {"own_token": "how much the other tokens of the row moved decides on the band"}

    def weight(
        self, now: TokenLogprobs, old: TokenLogprobs, advantages: Float[Tensor, " actions"], rows: ActionRows
    ) -> Float[Tensor, " actions"]:
        """0 outside the token's own band where it moves out, else 1."""
        moved = unmoved_ratio(now, old).log().abs()
        most = by_row(moved, rows.action_counts, lambda row: row > torch.quantile(row, 1 - self.share))
        narrow = Clip(self.low * self.contraction, self.high * self.contraction)
        usual = Clip(self.low, self.high).weight(now, old, advantages, rows)
        return torch.where(most, narrow.weight(now, old, advantages, rows), usual)
