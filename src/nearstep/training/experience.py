"""How a scored rollout becomes experience: log-probs of the reference, values, rewards, advantages, returns."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.algorithm.advantage_rules import Credit, CreditInputs
from nearstep.algorithm.agreement import MemberValues
from nearstep.algorithm.anchors import share_by_age
from nearstep.algorithm.by_reward import RewardColumns
from nearstep.algorithm.correction import CorrectionRule
from nearstep.algorithm.ragged import sum_by_row
from nearstep.algorithm.statistics import whiten
from nearstep.algorithm.trust_regions import TokenLogprobs
from nearstep.metrics import ExplainedVariance, Max, Mean, Metric, Metrics, Std
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.forward import (
    StateValues,
    rollout_logprobs,
    rollout_logprobs_and_outputs,
    rollout_values,
)
from nearstep.models.roles import Critic
from nearstep.training.agreement import agreement_metrics, with_agreement
from nearstep.training.auxiliary_inputs import auxiliary_metrics, with_auxiliary_inputs
from nearstep.training.credit import (
    at_last_rows,
    credit_inputs,
    first_episode,
    give_credit,
    on_all_rows,
    rows_scored_after_eos,
    shape_scores,
    token_rewards,
)
from nearstep.training.frozen_passes import PassLimits, reference_logprobs
from nearstep.training.mismatch import action_rows, checked_importance, importance_metrics, mismatch_metrics
from nearstep.training.recipe import Recipe
from nearstep.training.response_metrics import response_metrics, score_metrics
from nearstep.training.state import State
from nearstep.training.token_kl import describe_kl, penalised_kl
from nearstep.types import CriticLeads, Experience, Prompts, Rollout, Scores


def make_experience(
    rollout: Rollout,
    scores: Scores,
    r: Recipe,
    state: State | None = None,
    *,
    prompts: Prompts | None = None,
    kept: Bool[Tensor, " episodes"] | None = None,
    exact_kl: Float[Tensor, " actions"] | None = None,
) -> Experience:
    """Annotate a rollout with everything an update needs; it stays fixed for every epoch.

    `state` carries what earlier updates left behind (moments of the scores, the KL coefficient); without it the run
    begins here. A critic that reads columns of the data set (critic_columns) needs the `prompts`. `kept` are the
    episodes that a gate lets train, all if not given: the others count in no statistic that advantages depend on.
    `exact_kl` takes the place of the estimated KL, in the penalty and in the metrics.
    """
    if state is None:
        state = State()
        state.begin_update()
        state.update_score_moments(scores, r.config, r.backend)
    found = replace(annotate(rollout, scores, r, state, prompts, kept, exact_kl), exact_kl=exact_kl)
    return with_auxiliary_inputs(with_agreement(found, r), scores, r)


@torch.no_grad()
def annotate(
    rollout: Rollout,
    scores: Scores,
    r: Recipe,
    state: State,
    prompts: Prompts | None = None,
    kept: Bool[Tensor, " episodes"] | None = None,
    exact_kl: Float[Tensor, " actions"] | None = None,
) -> Experience:
    """What PPO itself needs: all but the inputs of auxiliary losses."""
    config, counted = r.config, scores.scored if kept is None else scores.scored & kept
    episodes, last, first_row = rollout.by_episode(), rollout.last_segments(), first_episode(rollout, r.backend)
    ref_logprobs = reference_logprobs(rollout, r)
    leads = None if r.critic_text is None else r.critic_text.leads(prompts, rollout)
    computed, states = before_first_step(rollout, r, leads)
    old, importance = anchor_logprobs(rollout, computed, r.correction)
    shaped = shape_scores(scores, last, config, state.score_moments, state.part_moments).to(states.final.dtype)
    kl_coef = r.kl_controller.first() if state.kl_coef is None else state.kl_coef
    other = dense_rewards(scores, rollout).to(shaped.dtype)
    if config.kl_in == "reward" and ref_logprobs is not None:
        other = other - kl_coef * penalised_kl(rollout, ref_logprobs, config.kl_estimator, exact_kl)
    after_eos = rows_scored_after_eos(last, config, has_critic=r.models.critic is not None)
    whiten_with = r.backend.add_up if config.whiten_rewards else None
    rewarded = token_rewards(shaped, other, counted, episodes, after_eos=after_eos, whiten_with=whiten_with)
    inputs = credit_inputs(
        rewarded, states, scores, rollout, config, r.backend,
        counted=counted, update=state.update, first_row=first_row, critic_is_ready=state.critic_is_ready,
    )  # fmt: skip
    credit = give_credit(r.advantage, inputs, has_token_rewards=scores.dense is not None)
    advantages = credit.advantages
    if r.whiten_advantages:
        advantages = whiten(advantages, counted=inputs.to_actions(counted), add_up=r.backend.add_up)
    numbers = torch.arange(first_row, first_row + len(last), device=rollout.tokens.device)
    samples = on_all_rows(numbers % config.num_generations, rollout)
    return Experience(
        rollout=rollout,
        prompt_numbers=on_all_rows(numbers // config.num_generations, rollout),
        sample_numbers=samples,
        scores=at_last_rows(shaped, rollout),
        old_logprobs=old.sampled,
        old_top=old.top,
        importance=importance,
        ref_logprobs=ref_logprobs,
        values=states.before_actions,
        rewards=rewarded.rewards,
        raw_advantages=credit.advantages,
        advantages=advantages,
        returns=credit.advantages if credit.targets is None else credit.targets,
        final_values=at_last_rows(inputs.final_values, rollout),
        final_returns=at_last_rows(rewarded.final_rewards, rollout),
        train_final=at_last_rows(rewarded.after_eos, rollout),
        trained=on_all_rows(counted & last.finished if config.mask_truncated_completions else counted, rollout),
        kl_coef=kl_coef,
        explained_variance=credit.explained_variance,
        fell_back=credit.fell_back,
        critic_leads=leads,
        anchor_share=_anchor_share(rollout, state.update) if config.anchor == "interpolated" else None,
        members=_members(states, samples, rollout),
        by_reward=_columns(states, credit, inputs),
    )


def _columns(states: StateValues, credit: Credit, inputs: CreditInputs) -> RewardColumns | None:
    if states.columns is None or credit.target_columns is None:
        return None
    return RewardColumns(tuple(part.name for part in inputs.parts), states.columns, credit.target_columns)


def _members(states: StateValues, samples: Tensor, rollout: Rollout) -> MemberValues | None:
    if states.by_member is None or states.final_by_member is None:
        return None
    return MemberValues.of(states.by_member, states.final_by_member, samples, rollout.action_counts)


def dense_rewards(scores: Scores, rollout: Rollout) -> Tensor:
    """Rewards that the sources gave to single actions; 0 where they gave them to whole rows."""
    return torch.zeros_like(rollout.logprobs) if scores.dense is None else scores.dense


def before_first_step(
    rollout: Rollout, r: Recipe, leads: CriticLeads | None = None
) -> tuple[TokenLogprobs | None, StateValues]:
    """Log-probs and values of the current weights, in forward passes of limited size: log-probs only if ratios are
    taken against them, the value of every state, 0 if there is no critic. On one trunk both come from one pass; a
    critic with `leads` of its own has rows of its own."""
    critic = None if r.models.critic is None else r.models.critic.model
    with r.backend.gathered(critic, r.models.policy.model if r.config.anchor == "recomputed" else None):
        return _before_first_step(rollout, r, leads)


def _before_first_step(
    rollout: Rollout, r: Recipe, leads: CriticLeads | None
) -> tuple[TokenLogprobs | None, StateValues]:
    policy, critic, anew = r.models.policy, r.models.critic, r.config.anchor == "recomputed"
    logprobs: list[ActionLogprobs] = []
    values: list[StateValues] = []
    for part in PassLimits.of(r).parts(rollout):
        if isinstance(critic, Critic) and anew and r.models.one_trunk:
            part_logprobs, outputs = rollout_logprobs_and_outputs(policy, critic, part, r.sampling)
            logprobs.append(part_logprobs)
            values.append(outputs.values(critic.value_head))
            continue
        if anew:
            logprobs.append(rollout_logprobs(policy, part, r.sampling))
        if leads is None:
            values.append(_no_values(part) if critic is None else rollout_values(critic, part))
    if critic is not None and leads is not None:
        values = [rollout_values(critic, part) for part in PassLimits.of(r).parts(rollout.with_leads(leads))]
    states = StateValues.joined(values)
    if not anew:
        return None, states
    top = None if rollout.top is None else torch.cat([each.top for each in logprobs if each.top is not None])
    return TokenLogprobs(torch.cat([each.sampled for each in logprobs]), top), states


def _no_values(rollout: Rollout) -> StateValues:
    return StateValues(torch.zeros_like(rollout.logprobs), rollout.logprobs.new_zeros(len(rollout)))


def anchor_logprobs(
    rollout: Rollout, computed: TokenLogprobs | None, correction: CorrectionRule
) -> tuple[TokenLogprobs, Tensor]:
    """What ratios are taken against, and the weight of each action's loss.

    Recorded log-probs need no weight. Those computed anew by the trainer have that of the correction, for an engine
    that samples from something slightly else. An anchor that is interpolated moves with the policy: it begins at what
    was recorded, and its weight is that of each step (`training/objectives.py`).
    """
    recorded = TokenLogprobs(rollout.logprobs, None if rollout.top is None else rollout.top.logprobs)
    if computed is None:
        return recorded, torch.ones_like(rollout.logprobs)
    rows = action_rows(rollout)
    return computed, checked_importance(correction, computed.sampled, recorded.sampled, rows)


def _anchor_share(rollout: Rollout, update: int) -> Tensor:
    """How far an interpolated anchor lies from the engine's log-probs towards the current ones, by action."""
    return share_by_age(rollout.versions, update).to(rollout.logprobs.dtype)


def describe(experience: Experience, scores: Scores, r: Recipe) -> Metrics:
    """The metrics of a rollout before the update, by episode; `reports/metrics.py` has their meanings."""
    rollout, scored = experience.rollout.by_episode(), scores.scored
    counts = rollout.action_counts
    non_score, kl_metrics = describe_kl(experience, r.config.kl_estimator)
    finals = experience.scores if experience.rollout is rollout else experience.scores[experience.rollout.ends_episode]
    shaped = scores.with_dense(finals, rollout)
    of_scored = scored.repeat_interleave(counts)
    metrics: dict[str, Metric] = {
        **kl_metrics,
        **(_describe_mismatch(experience, r.correction) if r.config.anchor == "recomputed" else {}),
        **auxiliary_metrics(experience),
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
        if experience.critic_leads is not None:
            metrics["val/critic_text_cut"] = Mean.of(experience.critic_leads.cut.float())
        metrics |= {**agreement_metrics(experience), **_describe_columns(experience, of_scored)}
        metrics["val/value_bias"] = Mean.of((experience.values - experience.returns)[of_scored])
        metrics["val/return_std"] = Std.of(experience.returns[of_scored])
    if experience.fell_back is not None and experience.explained_variance is not None:
        metrics["val/baseline_fallback"] = Max.of(torch.tensor([float(experience.fell_back)]))
        metrics["val/return_explained_variance"] = Max.of(torch.tensor([experience.explained_variance]).double())
    signs = {**response_metrics(experience.rollout), **score_metrics(experience, shaped, scored)}
    return Metrics({**metrics, **signs}) + _describe_parts(scores)


def _describe_columns(experience: Experience, of_scored: Tensor) -> dict[str, Metric]:
    """How well the critic knows each reward, where it has a value for each."""
    columns = experience.by_reward
    if columns is None:
        return {}
    returns, values = columns.returns[of_scored].unbind(-1), columns.values[of_scored].unbind(-1)
    return {
        f"reward/{name}_explained": ExplainedVariance.of(returns[number], values[number])
        for number, name in enumerate(columns.names)
    }


def _describe_mismatch(experience: Experience, correction: CorrectionRule) -> dict[str, Metric]:
    """Engine against trainer over all rows, before the first step, and what the correction makes of it."""
    rollout = experience.rollout
    trainer, engine = experience.old_logprobs, rollout.logprobs
    rows = action_rows(rollout)
    return {
        **mismatch_metrics(trainer, engine, rollout.action_counts),
        **importance_metrics(correction, experience.importance, trainer, engine, rows),
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
