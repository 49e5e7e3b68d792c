"""The axis of advantages: which action deserves what, given its rewards, the critic's values and the other rows.

Whitening is no part of a rule: it comes after, with any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from nearstep.algorithm.advantages import GroupRule, gae, group_advantages, length_adaptive_lam
from nearstep.algorithm.ragged import row_numbers, sum_by_row
from nearstep.algorithm.statistics import AddUp, alone, whiten


@dataclass(frozen=True)
class RewardPart:
    """What one reward source gave, before its weight, to the rows of this process."""

    name: str
    weight: float
    values: Float[Tensor, " rows"]  # NaN where it did not apply


@dataclass(frozen=True)
class CreditInputs:
    """Everything that advantages may depend on. Tensors hold the rows of this process; `group_size` and what follows
    it reach further.

    A row is an episode here: where one has several segments their actions lie back to back in one row.
    Rows of one prompt stand beside each other, `group_size` of them, in the order of the whole batch: a group may
    begin in one process and end in the next.
    """

    rewards: Float[Tensor, " actions"]  # of each action: the score at the last, token rewards, KL penalty
    values: Float[Tensor, " actions"]  # V of the state before each action; 0 without a critic
    action_counts: Int[Tensor, " rows"]
    final_values: Float[Tensor, " rows"]  # V of the state after the last action where something follows it, else 0
    final_advantages: Float[Tensor, " rows"]  # A of a step after the last action (score_position=after_eos), else 0
    scored: Bool[Tensor, " rows"]  # false where no reward source answered, or a gate drops it: counts nowhere
    update: int  # number of this update, from 1; 0 where the critic trains before the first one
    response_length: int  # most actions that a row, or a segment of one, may have
    turn_starts: Bool[Tensor, " actions"] | None = None  # first actions of turns; None where each row is one turn
    segment_starts: Bool[Tensor, " actions"] | None = None  # first actions of segments; None where each row is one
    group_size: int = 1
    first_row: int = 0  # place of this process's first row among the rows of all
    gather_rows: Callable[[Tensor], Tensor] = alone  # values by row, of all processes in the order of the batch
    add_up: AddUp = alone  # sums a tensor over all processes
    critic_is_ready: bool = False  # it has come to explain enough: its warm-up ended before the last update for it
    parts: tuple["RewardPart", ...] = ()  # what the sources gave to whole rows, in the same order on all processes
    # The critic's of each reward, then of the rest, as `values` and `final_values`; None where it has one for all.
    value_columns: Float[Tensor, "actions columns"] | None = None
    final_value_columns: Float[Tensor, "rows columns"] | None = None

    @property
    def row_totals(self) -> Float[Tensor, " rows"]:
        """Sum of the rewards of each row."""
        return sum_by_row(self.rewards, self.action_counts)

    def groups(self, row_values: Shaped[Tensor, " rows"]) -> Shaped[Tensor, "groups group_size"]:
        """Values by row, of all processes, one line for each prompt. Every process must call it alike."""
        grouped: Tensor = self.gather_rows(row_values).unflatten(0, (-1, self.group_size))
        return grouped

    def own_rows(self, group_values: Shaped[Tensor, "groups group_size"]) -> Shaped[Tensor, " rows"]:
        """The inverse of `groups`: this process's part."""
        return group_values.flatten()[self.first_row : self.first_row + len(self.action_counts)]

    def to_actions(self, row_values: Shaped[Tensor, " rows"]) -> Shaped[Tensor, " actions"]:
        """Every action gets the value of its row."""
        return row_values[row_numbers(self.action_counts)]

    def in_warm_up(self, updates: int) -> bool:
        """Whether the critic trains alone yet, by a warm-up of at most so many updates; before the first it does."""
        return self.update <= updates and not self.critic_is_ready


@dataclass(frozen=True)
class Credit:
    """How much better than expected each action was, and what the critic should predict (None without a critic)."""

    advantages: Float[Tensor, " actions"]
    targets: Float[Tensor, " actions"] | None = None
    explained_variance: float | None = None  # of the returns, over all processes; None unless it decides something
    fell_back: bool | None = None  # whether a mean has taken the place of the values; None where the rule never does so
    target_columns: Float[Tensor, "actions columns"] | None = None  # targets of each reward apart, then of the rest


@runtime_checkable
class Advantage(Protocol):
    """A rule for advantages and critic targets. Any frozen dataclass with these three members is one."""

    @property
    def needs_critic(self) -> bool:
        """Whether it reads values: a critic is then loaded and trained on the targets."""

    @property
    def uses_token_rewards(self) -> bool:
        """Whether it matters at which action of a row a reward is given. Where not, token rewards are refused."""

    def credit(self, inputs: CreditInputs) -> Credit:
        """Advantages, and the critic's targets where there is one. Nothing here carries a gradient."""


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation (1506.02438); the critic's targets may have a λ of their own.

    `lam_length_alpha` takes the policy's λ from the length of the row instead of `lam` (VAPO, 2504.05118); the critic
    keeps `lam_critic`, or `lam` where none is given. Before the first update and in the first `warmup_updates`, or
    until the critic is ready, its targets have `warmup_lam`.
    """

    gamma: float = 1.0
    lam: float = 0.95
    lam_length_alpha: float | None = None
    lam_critic: float | None = None
    warmup_updates: int = 0
    warmup_lam: float = 1.0
    needs_critic: bool = True
    uses_token_rewards: bool = True

    def credit(self, inputs: CreditInputs) -> Credit:
        """Advantages by the policy's λ; targets are values plus advantages by the critic's λ."""
        advantages = self._walk(inputs, self.policy_lam(inputs.action_counts))
        lam = self.critic_lam(inputs)
        gaps = advantages if lam is None else self._walk(inputs, lam)
        return Credit(advantages, gaps + inputs.values)

    def policy_lam(self, action_counts: Int[Tensor, " rows"]) -> float | Float[Tensor, " rows"]:
        """λ of the policy's advantages: fixed, or by the length of the row."""
        return self.lam if self.lam_length_alpha is None else length_adaptive_lam(action_counts, self.lam_length_alpha)

    def critic_lam(self, inputs: CreditInputs) -> float | None:
        """λ of the critic's targets, where it is not the policy's."""
        if inputs.in_warm_up(self.warmup_updates):
            return self.warmup_lam
        if self.lam_critic is None and self.lam_length_alpha is not None:
            return self.lam
        return self.lam_critic

    def _walk(self, inputs: CreditInputs, lam: float | Tensor) -> Tensor:
        return gae(
            inputs.rewards,
            inputs.values,
            inputs.action_counts,
            final_values=inputs.final_values,
            final_advantages=inputs.final_advantages,
            gamma=self.gamma,
            lam=lam,
        )


@dataclass(frozen=True)
class AgainstGroup:
    """Every action gets the advantage of its row over the other responses to its prompt; see `group_advantages`."""

    rule: GroupRule
    needs_critic: bool = False
    uses_token_rewards: bool = False

    def credit(self, inputs: CreditInputs) -> Credit:
        """The row's total, KL penalty included, against those of its group, on whichever process they are."""
        totals, scored = inputs.groups(inputs.row_totals), inputs.groups(inputs.scored)
        advantages = group_advantages(totals.flatten(), inputs.group_size, self.rule, scored.flatten())
        own = inputs.own_rows(advantages.unflatten(0, (-1, inputs.group_size)))
        return Credit(inputs.to_actions(own))


@dataclass(frozen=True)
class GDPO:
    """Every part of the reward against the group apart, then their weighted sum over the batch (2601.05242).

    Each part is normalised within its prompt's group, over the rows where it applied; a part on which all are alike
    adds nothing. What is no part (penalties for missing ends and length, the KL in the reward) keeps its size, less its
    mean in the group. The sum is shifted and scaled to mean 0 and variance 1 over the scored rows of all processes.
    """

    needs_critic: bool = False
    uses_token_rewards: bool = False

    def credit(self, inputs: CreditInputs) -> Credit:
        """One advantage for each row."""
        size, scored = inputs.group_size, inputs.groups(inputs.scored).flatten()
        weighted = [part.weight * part.values.nan_to_num(nan=0.0) for part in inputs.parts]
        rest = inputs.groups(inputs.row_totals - sum(weighted)).flatten()
        total = group_advantages(rest, size, "group_mean", scored)
        for part in inputs.parts:
            values = inputs.groups(part.values).flatten()
            applied = scored & ~values.isnan()
            values = values.nan_to_num(nan=0.0)
            total = total + part.weight * group_advantages(values, size, "group_normalized", applied)
        own = inputs.own_rows(total.unflatten(0, (-1, size)))
        return Credit(inputs.to_actions(whiten(own, counted=inputs.scored, add_up=inputs.add_up)))


def advantage_name(rule: Advantage) -> str:
    """What messages call a rule: the name that settings know it by where one class has several, else its class."""
    return rule.rule if type(rule) is AgainstGroup else type(rule).__name__


@dataclass(frozen=True)
class DiscountedReturn:
    """The sum of rewards from an action on: REINFORCE without a baseline. Whitened over the batch it is REINFORCE++."""

    gamma: float = 1.0
    needs_critic: bool = False
    uses_token_rewards: bool = True

    def credit(self, inputs: CreditInputs) -> Credit:
        """GAE with λ = 1 on values of 0."""
        nothing = torch.zeros_like(inputs.final_values)
        return Credit(
            gae(
                inputs.rewards,
                torch.zeros_like(inputs.values),
                inputs.action_counts,
                final_values=nothing,
                final_advantages=nothing,
                gamma=self.gamma,
                lam=1.0,
            )
        )
