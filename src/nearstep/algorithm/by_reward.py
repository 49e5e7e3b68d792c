"""Several rewards kept apart: a value, returns and advantages for each, which weights bring together at the end."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.advantage_rules import GAE, Credit, CreditInputs
from nearstep.algorithm.precision import wide
from nearstep.algorithm.shaping import add_scores
from nearstep.algorithm.statistics import Moments
from nearstep.algorithm.value_heads import ValueTargets


@runtime_checkable
class HasColumns(Protocol):
    """A head that has a value for each reward."""

    def columns(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, "states columns"]:
        """They, in float32 at least: in the order of the rewards, then what is no reward's own."""


@dataclass(frozen=True)
class RewardColumns:
    """What the critic says of every reward, and what it should say; the last column is what is no reward's own."""

    names: tuple[str, ...]  # of the rewards
    values: Float[Tensor, "actions columns"]
    returns: Float[Tensor, "actions columns"]

    def select(self, actions: Int[Tensor, " chosen"]) -> "RewardColumns":
        """Those of the given actions."""
        return replace(self, values=self.values[actions], returns=self.returns[actions])


@dataclass(frozen=True)
class RewardsHead:
    """An output for each reward, and one for what is no reward's own (penalties, the KL in the reward); the value is
    their weighted sum, each output learns its own returns."""

    weights: tuple[float, ...]  # of the rewards
    starts_at_zero: ClassVar[bool] = True
    value_range: ClassVar[None] = None

    @property
    def outputs(self) -> int:
        """One for each reward, and the rest."""
        return len(self.weights) + 1

    def columns(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, "states columns"]:
        """The outputs."""
        return wide(outputs)

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """Σ weight · output, the rest with weight 1."""
        return weighted(wide(outputs), self.weights)

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """½ Σ (V_k − R_k)² over the columns."""
        if learned.columns is None:
            raise ValueError("RewardsHead learns a return for each reward: it goes with advantage = gae_by_reward")
        return (wide(outputs) - learned.columns).square().sum(-1) / 2


@dataclass(frozen=True)
class GAEByReward:
    """GAE of every reward on a value of its own; each scaled to mean 0 and variance 1 over the scored rows of all
    processes, then their weighted sum: GDPO (2601.05242) for a critic, which knows the batch and no groups.

    A reward counts in the rows where it applied; elsewhere it adds nothing and its value learns nothing. One whose
    advantages hardly vary is not scaled. What is no reward's own (penalties for missing ends and length, the KL in the
    reward) is added in its own size.
    """

    gae: GAE = field(default_factory=GAE)
    needs_critic: bool = True
    uses_token_rewards: bool = False

    def credit(self, inputs: CreditInputs) -> Credit:
        """Advantages together, targets together and apart."""
        if inputs.value_columns is None or inputs.value_columns.shape[1] != len(inputs.parts) + 1:
            found = "no values" if inputs.value_columns is None else f"{inputs.value_columns.shape[1]} values"
            raise ValueError(
                f"gae_by_reward needs a value for each of {len(inputs.parts)} rewards and one for the rest, and the "
                f"critic has {found} for them"
            )
        nothing, everywhere = torch.zeros_like(inputs.rewards), torch.ones_like(inputs.scored)
        rest, total, targets = inputs.rewards, nothing, list[Tensor]()
        for number, part in enumerate(inputs.parts):
            applied = inputs.scored & ~part.values.isnan()
            given = torch.where(applied, part.values, 0)
            rewards = add_scores(nothing, given, inputs.action_counts, at_last=everywhere)
            rest = rest - part.weight * rewards
            advantages, learned = self._column(inputs, number, rewards, applied)
            counted = inputs.to_actions(applied)
            moments = Moments.of(advantages[counted], inputs.add_up)
            total = total + part.weight * torch.where(counted, moments.normalize(advantages, shift=True), 0)
            targets.append(learned)
        advantages, learned = self._column(inputs, len(inputs.parts), rest, everywhere)
        columns = torch.stack([*targets, learned], dim=-1)
        weights = tuple(part.weight for part in inputs.parts)
        return Credit(total + advantages, weighted(columns, weights), target_columns=columns)

    def _column(
        self, inputs: CreditInputs, number: int, rewards: Tensor, applied: Bool[Tensor, " rows"]
    ) -> tuple[Tensor, Tensor]:
        """Advantages and targets of one column; the target of a row where it did not apply is its value."""
        assert inputs.value_columns is not None, "it was looked at before"
        assert inputs.final_value_columns is not None, "it comes with the other"
        values = inputs.value_columns[:, number]
        alone = replace(inputs, rewards=rewards, values=values, final_values=inputs.final_value_columns[:, number])
        credit = self.gae.credit(alone)
        assert credit.targets is not None, "GAE has targets"
        return credit.advantages, torch.where(inputs.to_actions(applied), credit.targets, values)


def weighted(columns: Float[Tensor, "states columns"], weights: tuple[float, ...]) -> Float[Tensor, " states"]:
    """Σ weight · column, the last with weight 1."""
    return columns @ columns.new_tensor([*weights, 1.0])
