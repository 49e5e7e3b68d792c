"""Where the members of a critic agree, and where they do not: what of it the policy leaves out (AsyPPO, 2510.01656)."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDING = 1e-9  # 0.29 · 100 is a little below 29


@dataclass(frozen=True)
class MemberValues:
    """What the members of a critic said at rollout, and what the policy leaves out for it."""

    own: Float[Tensor, " actions"]  # by the one member that learns from the state before each action
    final_own: Float[Tensor, " rows"]  # the same of the state after each row's last token
    disagreement: Float[Tensor, " actions"]  # their standard deviation
    agreed: Bool[Tensor, " actions"] | None = None  # actions whose advantage is 0; None where none is left out
    # Of the entropy bonus, 0 where there is none; None where all have it.
    entropy_weights: Float[Tensor, " actions"] | None = None

    @staticmethod
    def of(
        by_member: Float[Tensor, "actions members"],
        final_by_member: Float[Tensor, "rows members"],
        samples: Int[Tensor, " rows"],
        action_counts: Int[Tensor, " rows"],
    ) -> "MemberValues":
        """Response number `samples` to its prompt belongs to that member, modulo how many there are."""
        member = samples % by_member.shape[-1]
        of_actions = member.repeat_interleave(action_counts)
        return MemberValues(
            by_member.gather(-1, of_actions[:, None]).squeeze(-1),
            final_by_member.gather(-1, member[:, None]).squeeze(-1),
            disagreement(by_member),
        )

    def select(self, rows: Int[Tensor, " rows"], actions: Int[Tensor, " actions"]) -> "MemberValues":
        """Those of the given rows, and of the actions in them."""
        return replace(
            self,
            own=self.own[actions],
            final_own=self.final_own[rows],
            disagreement=self.disagreement[actions],
            agreed=None if self.agreed is None else self.agreed[actions],
            entropy_weights=None if self.entropy_weights is None else self.entropy_weights[actions],
        )


def disagreement(by_member: Float[Tensor, "states members"]) -> Float[Tensor, " states"]:
    """Standard deviation of what the members say of each state, in float64: exactly 0 where all say the same."""
    exact = by_member.double()
    return (exact - exact.mean(-1, keepdim=True)).square().mean(-1).sqrt()


def lowest(
    numbers: Float[Tensor, " items"], among: Float[Tensor, " all_items"], share: float
) -> Bool[Tensor, " items"]:
    """Which numbers belong to the lowest `share` of all those that count.

    At most that share: numbers that are equal at the border all stay out, for nothing would tell them apart. Where all
    are equal, none belongs to it.
    """
    count = math.floor(share * len(among) + ROUNDING)
    if count == 0 or len(numbers) == 0:
        return torch.zeros_like(numbers, dtype=torch.bool)
    border = among.kthvalue(count + 1).values if count < len(among) else torch.inf
    return numbers < border


def highest(
    numbers: Float[Tensor, " items"], among: Float[Tensor, " all_items"], share: float
) -> Bool[Tensor, " items"]:
    """The same from above."""
    return lowest(-numbers, -among, share)
