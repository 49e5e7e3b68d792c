"""Which action deserves what: from scores of rows to rewards of tokens, advantages, and the critic's targets."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.algorithm.advantages import GroupRule, gae, group_advantages
from nearstep.algorithm.ragged import row_numbers, sum_by_row
from nearstep.algorithm.shaping import score_after_stop_rules, token_rewards
from nearstep.algorithm.statistics import whiten
from nearstep.config import PPOConfig
from nearstep.models.forward import StateValues
from nearstep.training.recipe import Recipe
from nearstep.types import Rollout, Scores


@dataclass(frozen=True)
class Paid:
    """The reward of every action, and what finished rows are paid one step after their stop token (0 elsewhere)."""

    rewards: Float[Tensor, " actions"]
    final_rewards: Float[Tensor, " rows"]
    after_eos: Bool[Tensor, " rows"]  # rows that are paid after their stop token


@dataclass(frozen=True)
class Credit:
    """How much better than expected every action was, and what the critic shall predict."""

    advantages: Float[Tensor, " actions"]
    returns: Float[Tensor, " actions"]
    final_values: Float[Tensor, " rows"]


def judge(scores: Scores, rollout: Rollout, config: PPOConfig) -> Float[Tensor, " rows"]:
    """The score of every row, cut to reward_clip, after the rules for rows that did not end themselves."""
    limit = torch.inf if config.reward_clip is None else config.reward_clip
    return score_after_stop_rules(
        scores.total.clamp(-limit, limit),
        rollout.finished,
        missing_eos_penalty=config.missing_eos_penalty,
        replacement=config.penalty_reward_value if config.non_eos_penalty else None,
    )


def pay(judged: Float[Tensor, " rows"], kl: Float[Tensor, " actions"], rollout: Rollout, r: Recipe) -> Paid:
    """The KL penalty at every action and the score at the last.

    With score_position="after_eos" the score of a row that ended before its limit is paid one step later, as in
    TRL; that takes a critic, which values the state in between.
    """
    config, counts = r.config, rollout.action_counts
    after_eos = torch.zeros_like(rollout.finished)
    if config.score_position == "after_eos" and r.models.critic is not None:
        after_eos = rollout.finished & (counts < config.response_length)
    rewards = token_rewards(kl, judged, counts, kl_coef=config.kl_coef, pay_at_last=~after_eos)
    final_rewards = torch.where(after_eos, judged, 0)
    if not config.whiten_rewards:
        return Paid(rewards, final_rewards, after_eos)
    together = torch.cat([rewards, final_rewards[after_eos]])
    scaled = whiten(together, shift_mean=False, add_up=r.backend.add_up)
    finals = torch.zeros_like(final_rewards)
    finals[after_eos] = scaled[len(rewards) :].to(finals.dtype)
    return Paid(scaled[: len(rewards)], finals, after_eos)


def give_credit(paid: Paid, states: StateValues, rollout: Rollout, r: Recipe) -> Credit:
    """Advantages by the rule that the settings name; returns are advantages plus values, before any whitening."""
    config, counts = r.config, rollout.action_counts
    has_future = paid.after_eos | ~rollout.finished if config.bootstrap_truncated else paid.after_eos
    final_values = torch.where(has_future, states.final, 0)

    def walk(lam: float) -> Tensor:
        return gae(
            paid.rewards,
            states.before_actions,
            counts,
            final_values=final_values,
            final_advantages=torch.where(paid.after_eos, paid.final_rewards - final_values, 0),
            gamma=config.gamma,
            lam=lam,
        )

    if config.advantage == "gae" or config.advantage == "batch_normalized":
        advantages = walk(config.lam if config.advantage == "gae" else 1.0)  # without values: the plain return
    else:
        advantages = _against_group(paid.rewards, counts, config.advantage, r)
    targets = advantages if config.lam_critic is None or config.advantage != "gae" else walk(config.lam_critic)
    if config.advantage == "batch_normalized" or (config.advantage == "gae" and config.whiten_advantages):
        advantages = whiten(advantages, add_up=r.backend.add_up)
    return Credit(advantages, targets + states.before_actions, final_values)


def _against_group(rewards: Tensor, counts: Tensor, rule: GroupRule, r: Recipe) -> Tensor:
    """Every action gets the advantage of its row over the other responses to the prompt, wherever those were played."""
    shares = r.backend.gather(sum_by_row(rewards, counts).cpu())
    of_rows = group_advantages(torch.cat(shares), r.config.num_generations, rule)
    own = of_rows.split([len(share) for share in shares])[r.backend.rank]
    by_row: Tensor = own.to(rewards.device)
    return by_row[row_numbers(counts)]
