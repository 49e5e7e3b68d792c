"""How a judged rollout becomes experience: log-probs of the reference, values, rewards, advantages, returns."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nearstep.algorithm.advantages import GroupRule, gae, group_advantages
from nearstep.algorithm.kl import kl_estimate
from nearstep.algorithm.ragged import row_numbers, sum_by_row
from nearstep.algorithm.shaping import score_after_stop_rules, token_rewards
from nearstep.algorithm.statistics import whiten
from nearstep.models.forward import StateValues, rollout_logprobs, rollout_values
from nearstep.training.recipe import Recipe
from nearstep.types import Experience, Max, Mean, Metric, Metrics, Rollout, Scores, Spread, row_groups


@torch.no_grad()
def make_experience(rollout: Rollout, scores: Scores, r: Recipe) -> Experience:
    """Annotate a rollout with everything an update needs; it stays fixed for every epoch.

    The old log-probs are those that the engine recorded. The score is paid at the last action; with
    score_position="after_eos" it is paid one step later for rows that ended before their limit, as in TRL.
    """
    config = r.config
    ref_logprobs = reference_logprobs(rollout, r)
    states = critic_values(rollout, r)
    judged = score_after_stop_rules(
        scores.total,
        rollout.finished,
        missing_eos_penalty=config.missing_eos_penalty,
        replacement=config.penalty_reward_value if config.non_eos_penalty else None,
    ).to(states.final.dtype)

    counts = rollout.action_counts
    after_eos = torch.zeros_like(rollout.finished)
    if config.score_position == "after_eos" and r.models.critic is not None:
        after_eos = rollout.finished & (counts < config.response_length)
    kl = kl_estimate(rollout.logprobs, ref_logprobs, config.kl_estimator)
    rewards = token_rewards(kl, judged, counts, kl_coef=config.kl_coef, pay_at_last=~after_eos)
    final_rewards = torch.where(after_eos, judged, 0)
    if config.whiten_rewards:
        rewards, final_rewards = _whiten_together(rewards, final_rewards, after_eos, r)

    final_values = torch.where(after_eos, states.final, 0)
    if config.advantage == "gae" or config.advantage == "batch_normalized":
        advantages = gae(
            rewards,
            states.before_actions,
            counts,
            final_values=final_values,
            final_advantages=final_rewards - final_values,
            gamma=config.gamma,
            lam=config.lam if config.advantage == "gae" else 1.0,  # without values: the plain return
        )
    else:
        advantages = _against_group(rewards, counts, config.advantage, r)
    returns = advantages + states.before_actions
    if config.advantage == "batch_normalized" or (config.advantage == "gae" and config.whiten_advantages):
        advantages = whiten(advantages, add_up=r.backend.add_up)
    return Experience(
        rollout=rollout,
        scores=judged,
        old_logprobs=rollout.logprobs,
        ref_logprobs=ref_logprobs,
        values=states.before_actions,
        rewards=rewards,
        advantages=advantages,
        returns=returns,
        final_values=final_values,
        final_returns=final_rewards,
        train_final=after_eos,
    )


def reference_logprobs(rollout: Rollout, r: Recipe) -> Tensor:
    """Log-probability of every action under the reference, in forward passes of limited size."""
    with r.models.reference.active() as reference:
        parts = [rollout_logprobs(reference, part, r.sampling).sampled for part in _parts(rollout, r)]
    return torch.cat(parts)


def critic_values(rollout: Rollout, r: Recipe) -> StateValues:
    """The critic's value of every state, in forward passes of limited size; 0 everywhere if there is no critic."""
    if r.models.critic is None:
        return StateValues(torch.zeros_like(rollout.logprobs), rollout.logprobs.new_zeros(len(rollout)))
    parts = [rollout_values(r.models.critic, part) for part in _parts(rollout, r)]
    return StateValues(torch.cat([p.before_actions for p in parts]), torch.cat([p.final for p in parts]))


def _against_group(rewards: Tensor, counts: Tensor, rule: GroupRule, r: Recipe) -> Tensor:
    """Every action gets the advantage of its row over the other responses to the prompt, wherever those were played."""
    shares = r.backend.gather(sum_by_row(rewards, counts).cpu())
    of_rows = group_advantages(torch.cat(shares), r.config.num_generations, rule)
    own = of_rows.split([len(share) for share in shares])[r.backend.rank]
    by_row: Tensor = own.to(rewards.device)
    return by_row[row_numbers(counts)]


def _parts(rollout: Rollout, r: Recipe) -> Iterator[Rollout]:
    lengths = rollout.row_lengths.tolist()
    for rows in row_groups(lengths, r.batch.micro_tokens, r.config.local_rollout_forward_batch_size):
        yield rollout.select(torch.arange(rows.start, rows.stop, device=rollout.tokens.device))


def _whiten_together(rewards: Tensor, final_rewards: Tensor, paid: Tensor, r: Recipe) -> tuple[Tensor, Tensor]:
    """Scale token rewards and the scores paid after the stop token by one common deviation."""
    together = torch.cat([rewards, final_rewards[paid]])
    scaled = whiten(together, shift_mean=False, add_up=r.backend.add_up)
    finals = torch.zeros_like(final_rewards)
    finals[paid] = scaled[len(rewards) :].to(finals.dtype)
    return scaled[: len(rewards)], finals


def describe(experience: Experience, scores: Scores, r: Recipe) -> Metrics:
    """The metrics of a rollout as they stand before the update; those of `reports/metrics.py` that start with "
    "objective/."""
    rollout, config = experience.rollout, r.config
    counts = rollout.action_counts
    kl = kl_estimate(experience.old_logprobs, experience.ref_logprobs, config.kl_estimator)
    kl_k3 = kl_estimate(experience.old_logprobs, experience.ref_logprobs, "k3")
    non_score = -config.kl_coef * sum_by_row(kl, counts)
    metrics: dict[str, Metric] = {
        "objective/kl": Mean.of(sum_by_row(kl, counts)),
        "objective/kl_per_token": Mean.of(kl),
        "objective/kl_k3": Mean.of(sum_by_row(kl_k3, counts)),
        "objective/entropy": Mean.of(sum_by_row(-experience.old_logprobs, counts)),
        "objective/non_score_reward": Mean.of(non_score),
        "objective/rlhf_reward": Mean.of(non_score + experience.scores),
        "objective/scores": Mean.of(experience.scores),
        "objective/scores_raw": Mean.of(scores.total),
        "objective/score_spread": Spread.of(experience.scores),
        "response/length_mean": Mean.of(counts.float()),
        "response/length_max": Max.of(counts.float()),
        "response/truncated": Mean.of((~rollout.finished).float()),
        "val/num_eos_tokens": Mean.of(rollout.finished.float()),
        "val/advantage_spread": Spread.of(experience.returns - experience.values),
    }
    if r.models.critic is not None:
        metrics["critic/return"] = Spread.of(experience.returns)
        metrics["critic/residual"] = Spread.of(experience.returns - experience.values)
    return Metrics(metrics) + _describe_parts(scores)


def _describe_parts(scores: Scores) -> Metrics:
    """Every part of the reward by its name, over the rows where it applied."""
    metrics: dict[str, Metric] = {}
    for name, part in scores.parts.items():
        applied = part[~part.isnan()]
        metrics[f"reward/{name}"] = Mean.of(applied)
        metrics[f"reward/{name}_spread"] = Spread.of(applied)
        metrics[f"reward/{name}_none"] = Mean.of(part.isnan().float())
    return Metrics(metrics)
