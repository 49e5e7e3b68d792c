"""Credit by turn: what the policy says between two texts that it hears is one action of a conversation."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.advantage_rules import Credit, CreditInputs
from nearstep.algorithm.advantages import gae
from nearstep.algorithm.precision import wide
from nearstep.algorithm.ragged import places_in_row, sum_by_row


def turn_gae(
    rewards: Float[Tensor, " actions"],
    values: Float[Tensor, " actions"],
    action_counts: Int[Tensor, " rows"],
    turn_starts: Bool[Tensor, " actions"],
    *,
    final_values: Float[Tensor, " rows"],
    final_advantages: Float[Tensor, " rows"],
    gamma: float,
    lam: float,
) -> Float[Tensor, " actions"]:
    """GAE whose steps are turns: a turn earns the sum of its tokens' rewards, its V is that of the state before its
    first token, and each of its tokens has its advantage. `gamma` and `lam` count turns.

    Where each turn is one token this is `gae`. Source: Turn-PPO (2512.17008).
    """
    turns = turn_starts.cumsum(0) - 1
    earned = wide(rewards).new_zeros(int(turn_starts.sum())).index_add(0, turns, wide(rewards))
    advantages = gae(
        earned,
        values[turn_starts],
        sum_by_row(turn_starts.long(), action_counts),
        final_values=final_values,
        final_advantages=final_advantages,
        gamma=gamma,
        lam=lam,
    )
    return advantages[turns]


def turn_returns(
    advantages: Float[Tensor, " actions"],
    rewards: Float[Tensor, " actions"],
    values: Float[Tensor, " actions"],
    turn_starts: Bool[Tensor, " actions"],
) -> Float[Tensor, " actions"]:
    """What the critic should predict: the turn's advantage plus its V, less what the turn has earned before a token.

    The paper has one state for each turn; that of a later token lacks only what is behind it already.
    """
    turns = turn_starts.cumsum(0) - 1
    before = rewards.double().cumsum(0) - rewards.double()
    earned = before - before[turn_starts][turns]
    return advantages + values[turn_starts][turns] - earned.to(advantages.dtype)


@dataclass(frozen=True)
class TurnGAE:
    """Generalised advantage estimation by turn (Turn-PPO, 2512.17008); the critic's targets may have a λ of their own.

    Before the first update and in the first `warmup_updates`, or until the critic is ready, they have `warmup_lam`.
    """

    gamma: float = 0.99
    lam: float = 0.9
    lam_critic: float | None = None
    warmup_updates: int = 0
    warmup_lam: float = 1.0
    needs_critic: bool = True
    uses_token_rewards: bool = True

    def credit(self, inputs: CreditInputs) -> Credit:
        """Each token has its turn's advantage; targets are by the critic's λ."""
        starts = places_in_row(inputs.action_counts) == 0 if inputs.turn_starts is None else inputs.turn_starts
        advantages = self._walk(inputs, starts, self.lam)
        lam = self.warmup_lam if inputs.in_warm_up(self.warmup_updates) else self.lam_critic
        gaps = advantages if lam is None else self._walk(inputs, starts, lam)
        return Credit(advantages, turn_returns(gaps, inputs.rewards, inputs.values, starts))

    def _walk(self, inputs: CreditInputs, turn_starts: Tensor, lam: float) -> Tensor:
        return turn_gae(
            inputs.rewards,
            inputs.values,
            inputs.action_counts,
            turn_starts,
            final_values=inputs.final_values,
            final_advantages=inputs.final_advantages,
            gamma=self.gamma,
            lam=lam,
        )
