"""How a scored rollout becomes experience: log-probs of the reference, values, rewards, advantages, returns."""

import torch
from torch import Tensor

from nearstep.algorithm.kl import KLEstimator, kl_estimate
from nearstep.algorithm.losses import importance_weight, probability_ratio
from nearstep.algorithm.ragged import sum_by_row
from nearstep.algorithm.statistics import whiten
from nearstep.algorithm.trust_regions import TokenLogprobs
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import ExplainedVariance, Max, Mean, Metric, Metrics, Std
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.forward import StateValues, rollout_logprobs, rollout_logprobs_and_values, rollout_values
from nearstep.training.auxiliary_inputs import auxiliary_metrics, with_auxiliary_inputs
from nearstep.training.credit import credit_inputs, give_credit, rows_scored_after_eos, shape_scores, token_rewards
from nearstep.training.frozen_passes import PassLimits, reference_logprobs
from nearstep.training.recipe import Recipe
from nearstep.training.response_metrics import response_metrics, score_metrics
from nearstep.training.state import State
from nearstep.types import Experience, Rollout, Scores


@torch.no_grad()
def make_experience(rollout: Rollout, scores: Scores, r: Recipe, state: State | None = None) -> Experience:
    """Annotate a rollout with everything an update needs; it stays fixed for every epoch.

    `state` carries what earlier updates left behind (moments of the scores, the KL coefficient); without it the run
    begins here.
    """
    return with_auxiliary_inputs(_annotated(rollout, scores, r, state), scores, r)


def _annotated(rollout: Rollout, scores: Scores, r: Recipe, state: State | None) -> Experience:
    if state is None:
        state = State()
        state.begin_update()
        state.update_score_moments(scores, r.config, r.backend)
    config, first_row = r.config, sum(r.backend.gather(len(rollout))[: r.backend.rank])
    ref_logprobs = reference_logprobs(rollout, r)
    computed, states = before_first_step(rollout, r)
    old, importance = anchor_logprobs(rollout, computed, config)
    shaped = shape_scores(scores, rollout, config, state.score_moments).to(states.final.dtype)
    kl_coef = r.kl_controller.first() if state.kl_coef is None else state.kl_coef
    other = dense_rewards(scores, rollout).to(shaped.dtype)
    if config.kl_in == "reward" and ref_logprobs is not None:
        other = other - kl_coef * kl_estimate(rollout.logprobs, ref_logprobs, config.kl_estimator)
    rewarded = token_rewards(
        shaped,
        other,
        scores.scored,
        rollout,
        after_eos=rows_scored_after_eos(rollout, config, has_critic=r.models.critic is not None),
        whiten_with=r.backend.add_up if config.whiten_rewards else None,
    )
    inputs = credit_inputs(
        rewarded, states, scores.scored, rollout, config, r.backend, update=state.update, first_row=first_row
    )
    credit = give_credit(r.advantage, inputs, has_token_rewards=scores.dense is not None)
    advantages = credit.advantages
    if r.whiten_advantages:
        advantages = whiten(advantages, counted=inputs.to_actions(scores.scored), add_up=r.backend.add_up)
    learnable = rollout.finished if config.mask_truncated_completions else torch.ones_like(rollout.finished)
    rows = torch.arange(first_row, first_row + len(rollout), device=rollout.tokens.device)
    return Experience(
        rollout=rollout,
        prompt_numbers=rows // config.num_generations,
        scores=shaped,
        old_logprobs=old.sampled,
        old_top=old.top,
        importance=importance,
        ref_logprobs=ref_logprobs,
        values=states.before_actions,
        rewards=rewarded.rewards,
        raw_advantages=credit.advantages,
        advantages=advantages,
        returns=credit.advantages if credit.targets is None else credit.targets,
        final_values=inputs.final_values,
        final_returns=rewarded.final_rewards,
        train_final=rewarded.after_eos,
        trained=scores.scored & learnable,
        kl_coef=kl_coef,
    )


def dense_rewards(scores: Scores, rollout: Rollout) -> Tensor:
    """Rewards that the sources gave to single actions; 0 where they gave them to whole rows."""
    return torch.zeros_like(rollout.logprobs) if scores.dense is None else scores.dense


def before_first_step(rollout: Rollout, r: Recipe) -> tuple[TokenLogprobs | None, StateValues]:
    """Log-probs and values of the current weights, in forward passes of limited size: log-probs only if ratios are
    taken against them, the value of every state, 0 if there is no critic. On one trunk both come from one pass."""
    policy, critic, anew = r.models.policy, r.models.critic, r.config.anchor == "recomputed"
    logprobs: list[ActionLogprobs] = []
    values: list[StateValues] = []
    for part in PassLimits.of(r).parts(rollout):
        if critic is not None and anew and r.models.one_trunk:
            part_logprobs, states = rollout_logprobs_and_values(policy, critic, part, r.sampling)
            logprobs.append(part_logprobs)
            values.append(states)
            continue
        if anew:
            logprobs.append(rollout_logprobs(policy, part, r.sampling))
        values.append(_no_values(part) if critic is None else rollout_values(critic, part))
    states = StateValues(torch.cat([v.before_actions for v in values]), torch.cat([v.final for v in values]))
    if not anew:
        return None, states
    top = None if rollout.top is None else torch.cat([each.top for each in logprobs if each.top is not None])
    return TokenLogprobs(torch.cat([each.sampled for each in logprobs]), top), states


def _no_values(rollout: Rollout) -> StateValues:
    return StateValues(torch.zeros_like(rollout.logprobs), rollout.logprobs.new_zeros(len(rollout)))


def anchor_logprobs(
    rollout: Rollout, computed: TokenLogprobs | None, config: PPOConfig
) -> tuple[TokenLogprobs, Tensor]:
    """What ratios are taken against, and the weight of each action's loss.

    Recorded log-probs need no weight. Log-probs computed anew by the trainer may be given the importance weight
    π_old / μ within limits, which corrects for an engine that samples from something slightly else.
    """
    recorded = TokenLogprobs(rollout.logprobs, None if rollout.top is None else rollout.top.logprobs)
    if computed is None:
        return recorded, torch.ones_like(rollout.logprobs)
    low, high = config.importance_floor, config.importance_cap
    if low is None and high is None:
        return computed, torch.ones_like(rollout.logprobs)
    return computed, importance_weight(
        computed.sampled,
        recorded.sampled,
        low=0.0 if low is None else low,
        high=torch.inf if high is None else high,
        mask=config.importance_rule == "mask",
    )


def describe(experience: Experience, scores: Scores, r: Recipe) -> Metrics:
    """The metrics of a rollout before the update; `reports/metrics.py` has their meanings."""
    rollout = experience.rollout
    counts, scored = rollout.action_counts, scores.scored
    non_score, kl_metrics = _describe_kl(experience, r.config.kl_estimator)
    shaped = scores.with_dense(experience.scores, rollout)
    of_scored = scored.repeat_interleave(counts)
    metrics: dict[str, Metric] = {
        **kl_metrics,
        **auxiliary_metrics(experience),
        **(_describe_importance(experience, r.config) if r.config.anchor == "recomputed" else {}),
        "objective/entropy": Mean.of(sum_by_row(-rollout.logprobs, counts)),
        "objective/non_score_reward": Mean.of(non_score),
        "objective/non_score_reward_std": Std.of(non_score),
        "objective/rlhf_reward": Mean.of((non_score + shaped)[scored]),
        "objective/scores": Mean.of(shaped[scored]),
        "objective/scores_raw": Mean.of(scores.with_dense(scores.total, rollout)[scored]),
        "objective/scores_std": Std.of(shaped[scored]),
        "response/length_mean": Mean.of(counts.float()),
        "response/length_max": Max.of(counts.float()),
        "response/truncated": Mean.of((~rollout.finished).float()),
        "response/left_out": Mean.of((~experience.trained).float()),
        "val/num_eos_tokens": Mean.of(rollout.finished.float()),
        "val/advantage_std": Std.of(experience.raw_advantages[of_scored]),
    }
    if r.models.critic is not None:
        metrics["val/explained_variance"] = ExplainedVariance.of(
            experience.returns[of_scored], experience.values[of_scored]
        )
        metrics["val/value_bias"] = Mean.of((experience.values - experience.returns)[of_scored])
        metrics["val/return_std"] = Std.of(experience.returns[of_scored])
    signs = {**response_metrics(rollout), **score_metrics(experience, shaped, scored)}
    return Metrics({**metrics, **signs}) + _describe_parts(scores)


def _describe_importance(experience: Experience, config: PPOConfig) -> dict[str, Metric]:
    """The weights π_old / μ before their limits, and how many tokens the limits change."""
    weight = probability_ratio(experience.old_logprobs, experience.rollout.logprobs)
    metrics: dict[str, Metric] = {"policy/importance_avg": Mean.of(weight), "policy/importance_max": Max.of(weight)}
    if config.importance_floor is not None or config.importance_cap is not None:
        metrics["policy/importance_cut"] = Mean.of((experience.importance != weight).float())
    return metrics


def _describe_kl(experience: Experience, estimator: KLEstimator) -> tuple[Tensor, dict[str, Metric]]:
    """What the KL penalty costs every row, and the KL's own metrics, where there is a reference."""
    rollout = experience.rollout
    if experience.ref_logprobs is None:
        return torch.zeros_like(experience.scores), {}
    kl = kl_estimate(rollout.logprobs, experience.ref_logprobs, estimator)
    row_kl = sum_by_row(kl, rollout.action_counts)
    k3 = kl_estimate(rollout.logprobs, experience.ref_logprobs, "k3")
    return -experience.kl_coef * row_kl, {
        "objective/kl": Mean.of(row_kl),
        "objective/kl_per_token": Mean.of(kl),
        "objective/kl_k3": Mean.of(sum_by_row(k3, rollout.action_counts)),
        "objective/kl_coef": Max.of(torch.tensor([experience.kl_coef])),
    }


def _describe_parts(scores: Scores) -> Metrics:
    """Every part of the reward by its name, over the rows where it applied."""
    metrics: dict[str, Metric] = {}
    for name, all_values in scores.parts.items():
        part = all_values[scores.scored]
        applied = part[~part.isnan()]
        metrics[f"reward/{name}"] = Mean.of(applied)
        metrics[f"reward/{name}_std"] = Std.of(applied)
        metrics[f"reward/{name}_none"] = Mean.of(part.isnan().float())
    return Metrics(metrics)
