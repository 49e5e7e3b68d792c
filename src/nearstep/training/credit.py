"""Which action deserves what: from scores of rows to rewards of tokens, advantages, and the critic's targets."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.advantages import GroupRule, gae, group_advantages, length_adaptive_lam
from nearstep.algorithm.ragged import row_numbers, sum_by_row
from nearstep.algorithm.shaping import score_after_stop_rules, soft_overlong_penalty, token_rewards
from nearstep.algorithm.statistics import Moments, whiten
from nearstep.config.ppo import PPOConfig
from nearstep.models.forward.forward import StateValues
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


def judge(scores: Scores, rollout: Rollout, config: PPOConfig, moments: Moments) -> Float[Tensor, " rows"]:
    """The score of every row: normalised by the moments of all scores so far, cut to reward_clip, then the rules for
    rows that did not end themselves or came near the longest length. A row that was not judged has 0."""
    limit = torch.inf if config.reward_clip is None else config.reward_clip
    totals = torch.where(scores.scored, scores.total, 0)
    if config.normalize_scores != "none":
        totals = moments.normalize(totals, shift=config.normalize_scores == "shift_and_scale")
    judged = score_after_stop_rules(
        totals.clamp(-limit, limit),
        rollout.finished,
        missing_eos_penalty=config.missing_eos_penalty,
        replacement=config.penalty_reward_value if config.non_eos_penalty else None,
    )
    if config.overlong_buffer is None:
        return judged
    lengths = rollout.action_counts
    return judged + config.overlong_penalty * soft_overlong_penalty(
        lengths, longest=config.response_length, buffer=config.overlong_buffer
    )


def pay(
    judged: Float[Tensor, " rows"],
    penalty: Float[Tensor, " actions"],
    scored: Bool[Tensor, " rows"],
    rollout: Rollout,
    r: Recipe,
) -> Paid:
    """What every action is paid: `penalty` (dense rewards less the KL penalty), and at the last one the score.

    With score_position="after_eos" the score of a row that ended before its limit is paid one step later, as in
    TRL; that takes a critic, which values the state in between.
    """
    config, counts = r.config, rollout.action_counts
    after_eos = torch.zeros_like(rollout.finished)
    if config.score_position == "after_eos" and r.models.critic is not None:
        after_eos = rollout.finished & (counts < config.response_length)
    rewards = token_rewards(penalty, judged, counts, pay_at_last=~after_eos)
    final_rewards = torch.where(after_eos, judged, 0)
    if not config.whiten_rewards:
        return Paid(rewards, final_rewards, after_eos)
    together = torch.cat([rewards, final_rewards[after_eos]])
    counted = torch.cat([scored[row_numbers(counts)], scored[after_eos]])
    scaled = whiten(together, shift_mean=False, counted=counted, add_up=r.backend.add_up)
    finals = torch.zeros_like(final_rewards)
    finals[after_eos] = scaled[len(rewards) :].to(finals.dtype)
    return Paid(scaled[: len(rewards)], finals, after_eos)


def give_credit(paid: Paid, states: StateValues, scored: Bool[Tensor, " rows"], rollout: Rollout, r: Recipe) -> Credit:
    """Advantages by the rule that the settings name; returns are advantages plus values, before any whitening."""
    config, counts = r.config, rollout.action_counts
    has_future = paid.after_eos | ~rollout.finished if config.bootstrap_truncated else paid.after_eos
    final_values = torch.where(has_future, states.final, 0)

    def walk(lam: float | Tensor) -> Tensor:
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
        advantages = walk(policy_lam(config, counts))
    else:
        advantages = _against_group(paid.rewards, scored, counts, config.advantage, r)
    own_lam = critic_lam(config, rollout)
    targets = advantages if own_lam is None else walk(own_lam)
    if config.advantage == "batch_normalized" or (config.advantage == "gae" and config.whiten_advantages):
        advantages = whiten(advantages, counted=scored[row_numbers(counts)], add_up=r.backend.add_up)
    return Credit(advantages, targets + states.before_actions, final_values)


def policy_lam(config: PPOConfig, action_counts: Int[Tensor, " rows"]) -> float | Float[Tensor, " rows"]:
    """λ of the policy's advantages: fixed, or by the length of the row; 1 without values, where it gives the return."""
    if config.advantage != "gae":
        return 1.0
    if config.lam_length_alpha is None:
        return config.lam
    return length_adaptive_lam(action_counts, config.lam_length_alpha)


def critic_lam(config: PPOConfig, rollout: Rollout) -> float | None:
    """λ of the critic's targets where it is not the policy's; the warm-up has one of its own (1 is Monte Carlo)."""
    if config.advantage != "gae":
        return None
    if config.vf_warmup_updates and bool((rollout.policy_version <= config.vf_warmup_updates).all()):
        return config.vf_warmup_lam
    if config.lam_critic is None and config.lam_length_alpha is not None:
        return config.lam
    return config.lam_critic


def _against_group(rewards: Tensor, scored: Tensor, counts: Tensor, rule: GroupRule, r: Recipe) -> Tensor:
    """Every action gets the advantage of its row over the other responses to the prompt, wherever those were played."""
    shares = r.backend.gather((sum_by_row(rewards, counts).cpu(), scored.cpu()))
    totals, judged = (torch.cat(column) for column in zip(*shares, strict=True))
    of_rows = group_advantages(totals, r.config.num_generations, rule, judged)
    own = of_rows.split([len(share) for share, _ in shares])[r.backend.rank]
    by_row: Tensor = own.to(rewards.device)
    return by_row[row_numbers(counts)]
