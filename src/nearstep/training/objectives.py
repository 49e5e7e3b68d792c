"""What policy and critic minimise on a micro-batch, and what is measured by the way."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.anchors import interpolated
from nearstep.algorithm.correction import UNCORRECTED, CorrectionRule
from nearstep.algorithm.kl import KLEstimator, kl_estimate
from nearstep.algorithm.losses import policy_loss, probability_ratio, sequence_anchor
from nearstep.algorithm.ragged import run_lengths
from nearstep.algorithm.trust_regions import LogsOwnLoss, TokenLogprobs, TrustRegion
from nearstep.algorithm.value_heads import MeasuresStates, ValueHead, ValueTargets
from nearstep.common.errors import TrainingError
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import EffectiveSampleSize, Max, Mean, Metric, Metrics, StandardError, Variance
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.forward import (
    StateOutputs,
    rollout_logprobs,
    rollout_logprobs_and_outputs,
    rollout_outputs,
)
from nearstep.models.roles import Critic, Critics
from nearstep.scale.turns import equal_passes
from nearstep.training.auxiliary import auxiliary_terms
from nearstep.training.axis_results import region_problem, state_numbers_problem, weights_problem
from nearstep.training.empty_passes import empty_critic_loss
from nearstep.training.mismatch import action_rows, checked_importance, importance_metrics, mismatch_metrics
from nearstep.training.profiles import masked_by_place
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.types import Experience


@dataclass(frozen=True)
class Divisors:
    """What the sums over a minibatch are divided by, over all processes: fixed before any split."""

    policy: Tensor
    critic: Tensor
    auxiliary: tuple[Tensor, ...] = ()  # one for each auxiliary loss


@dataclass(frozen=True)
class PolicyTerms:
    """What the policy's loss is made of."""

    trust_region: TrustRegion
    ratio_limit: float | None  # largest ratio that a token's loss counts with
    ratio_level: Literal["token", "turn", "row"]
    aggregation: LossAggregation
    kl_estimator: KLEstimator | None  # of the KL as a term of the loss; None where it is none
    entropy_coef: float
    correction: CorrectionRule = UNCORRECTED
    anchor: Literal["sampled", "recomputed", "interpolated"] = "sampled"

    @staticmethod
    def of(r: Recipe) -> "PolicyTerms":
        """Those of a run."""
        return PolicyTerms.chosen(r.config, r.trust_region, r.ratio_limit, r.loss_aggregation, r.correction)

    @staticmethod
    def chosen(
        config: PPOConfig,
        region: TrustRegion,
        ratio_limit: float | None,
        aggregation: LossAggregation,
        correction: CorrectionRule,
    ) -> "PolicyTerms":
        """By the settings, and the objects on the axes."""
        return PolicyTerms(
            region,
            ratio_limit,
            config.ratio_level,
            aggregation,
            config.kl_estimator if config.kl_in == "loss" else None,
            config.entropy_coef,
            correction,
            config.anchor,
        )


def losses(
    micro: Experience, phase: Phase, divisors: Divisors, r: Recipe, critics: Collection[int] = (), *, first: bool
) -> Iterator[tuple[Tensor, Metrics]]:
    """What a micro-batch adds to the loss of its minibatch: one loss for each pass forward and backward; where
    processes must run as many, an empty one for each of these `critics` that has no row in it.

    A model's graph is gone before the next one begins. A critic on the policy's trunk is trained in the same pass as
    the policy; where it is trained alone, only its head learns, for the trunk is the policy's.
    """
    policy, critic, terms = r.models.policy, r.models.critic, PolicyTerms.of(r)
    entropy, normalizers = terms.entropy_coef != 0, r.auxiliary.log_normalizers
    if phase.policy and phase.critic and isinstance(critic, Critic) and r.models.one_trunk:
        now, outputs = rollout_logprobs_and_outputs(
            policy, critic, micro.rollout, r.sampling, entropy_gradient=entropy, log_normalizers=normalizers
        )
        of_policy, policy_metrics = _policy_loss(micro, now, terms, divisors, r, first=first)
        critic_sum, critic_metrics = value_objective(micro, outputs, critic.value_head)
        loss = of_policy + r.config.vf_coef * critic_sum / divisors.critic
        yield loss, policy_metrics + critic_metrics
        return
    if phase.policy:
        now = rollout_logprobs(policy, micro.rollout, r.sampling, entropy_gradient=entropy, log_normalizers=normalizers)
        yield _policy_loss(micro, now, terms, divisors, r, first=first)
    if phase.critic:
        assert critic is not None, "a phase that trains the critic needs one"
        weight = r.config.vf_coef if phase.policy else 1.0  # alone, its optimizer sets the scale
        for number, (member, mine) in enumerate(shares(micro, critic)):
            if len(mine) == 0:
                if equal_passes(r.backend) and number in critics:
                    yield empty_critic_loss(member, r), Metrics()
                continue
            outputs = rollout_outputs(member, mine.critic_rollout, head_only=r.models.one_trunk)
            loss, metrics = value_objective(mine, outputs, member.value_head)
            yield weight * loss / divisors.critic, metrics


def shares(micro: Experience, critic: Critic | Critics) -> Iterator[tuple[Critic, Experience]]:
    """Which rows each critic learns from: all where there is one, else other responses to every prompt, or none."""
    count = len(critic.members)
    for number, member in enumerate(critic.members):
        mine = micro if count == 1 else micro.select((micro.sample_numbers % count == number).nonzero().squeeze(-1))
        yield member, mine


def _policy_loss(
    micro: Experience, now: ActionLogprobs, terms: PolicyTerms, divisors: Divisors, r: Recipe, *, first: bool
) -> tuple[Tensor, Metrics]:
    """What a micro-batch adds to the policy's loss: PPO's, and every auxiliary loss, each under its own divisor."""
    total, metrics = policy_objective(micro, now, terms, first=first)
    added, more = auxiliary_terms(micro, now, r.auxiliary.losses, divisors.auxiliary)
    return sum(added, start=total / divisors.policy), metrics + more


def policy_objective(
    micro: Experience, now: ActionLogprobs, terms: PolicyTerms, *, first: bool
) -> tuple[Tensor, Metrics]:
    """Weighted sum of the policy loss over the actions of a micro-batch; `now` are the current log-probs.

    The trust region's loss, the KL penalty where it belongs to the loss, and the entropy bonus. Raises TrainingError
    where the region returns no weights, or the aggregation no weights, for the actions.
    """
    at = weights_at(micro, now, terms)
    loss = at.importance * policy_loss(now.sampled, at.anchor.sampled, micro.advantages, at.region, terms.ratio_limit)
    metrics = _policy_metrics(micro, now, at, loss.detach(), terms, first=first)
    if terms.kl_estimator is not None and micro.ref_logprobs is not None:
        # Also where the region leaves a token out: the reference holds the policy everywhere.
        loss = loss + micro.kl_coef * kl_estimate(now.sampled, micro.ref_logprobs, terms.kl_estimator)
    if terms.entropy_coef != 0:
        kept = None if micro.members is None else micro.members.entropy_weights
        loss = loss - terms.entropy_coef * (now.entropy if kept is None else kept * now.entropy)
    weights = terms.aggregation.weights(micro.rollout.action_counts)
    _require_none("loss aggregation", terms.aggregation, weights_problem(weights, len(loss)))
    return (weights * loss).sum(), metrics


@dataclass(frozen=True)
class LossWeights:
    """What the loss of every action is made with, at the policy as it is now. Nothing here carries a gradient."""

    token_anchor: TokenLogprobs  # what the ratio of each token is taken against
    anchor: TokenLogprobs  # what the loss takes it against: with ratio_level = row all of a row have one ratio
    region: Tensor  # the trust region's weight on the gradient
    importance: Tensor  # the correction's on the loss


def weights_at(micro: Experience, now: ActionLogprobs, terms: PolicyTerms) -> LossWeights:
    """What ratios are taken against, and the weights of region and correction.

    Raises TrainingError where the region or the correction returns no weights for the actions.
    """
    fixed = TokenLogprobs(now.sampled.detach(), None if now.top is None else now.top.detach())
    rollout, counts, turns = micro.rollout, micro.rollout.action_counts, micro.rollout.turn_starts
    rows = action_rows(rollout)
    importance, share = micro.importance, micro.anchor_share
    token_anchor = TokenLogprobs(micro.old_logprobs, micro.old_top)
    if share is not None:
        token_anchor = interpolated(token_anchor, fixed, share)
        importance = checked_importance(terms.correction, token_anchor.sampled, rollout.logprobs, rows)
    anchor = token_anchor
    if terms.ratio_level != "token":
        lengths = counts if terms.ratio_level == "row" else run_lengths(turns)
        anchor = TokenLogprobs(sequence_anchor(fixed.sampled, anchor.sampled, lengths), anchor.top)
    weight = terms.trust_region.weight(fixed, anchor, micro.advantages, rows)
    _require_none("trust region", terms.trust_region, region_problem(weight, len(micro.advantages)))
    return LossWeights(token_anchor, anchor, weight, importance)


def _require_none(axis: str, found: object, problem: str | None) -> None:
    """Raises TrainingError where what an object of an axis returned cannot be used."""
    if problem is not None:
        raise TrainingError(f"{axis} {type(found).__name__} on a micro-batch of this run: {problem}")


def _policy_metrics(
    micro: Experience, now: ActionLogprobs, at: LossWeights, loss: Tensor, terms: PolicyTerms, *, first: bool
) -> Metrics:
    """Token means of what happened to the policy; `loss` as the region has it, before other terms.

    What compares with the engine takes the log-probs that it recorded, whatever ratios are taken against.
    """
    sampled, recorded, weight = now.sampled.detach(), micro.rollout.logprobs, at.region
    ratio = probability_ratio(sampled, at.anchor.sampled)
    moved, dropped = (sampled.exp() - recorded.exp()).abs(), (weight == 0).float()
    absolute, held = loss.abs(), ratio.clamp(max=torch.inf if terms.ratio_limit is None else terms.ratio_limit)
    if isinstance(terms.trust_region, LogsOwnLoss):
        logged = terms.trust_region.logged(ratio, micro.advantages)
        loss, absolute, held = at.importance * logged.loss, at.importance * logged.absolute, logged.ratio
    metrics: dict[str, Metric] = {
        "loss/policy_avg": Mean.of(loss),
        "loss/policy_abs": Mean.of(absolute),
        "policy/approxkl_avg": Mean.of((sampled - at.token_anchor.sampled).square() / 2),
        "policy/clipfrac_avg": Mean.of(dropped),
        "policy/masked_positive": Mean.of(dropped[micro.advantages > 0]),
        "policy/masked_negative": Mean.of(dropped[micro.advantages < 0]),
        "policy/region_weight": Mean.of(weight.float()),
        "masked/share": masked_by_place(micro, dropped),
        "policy/prob_diff_mean": Mean.of(moved),
        "policy/prob_diff_max": Max.of(moved),
        "policy/entropy_avg": Mean.of(now.entropy),
        "val/ratio": Mean.of(ratio),
        "val/ratio_clamped": Mean.of(held),
        "val/ratio_var": Variance.of(ratio),
        "val/effective_sample_size": EffectiveSampleSize.of(ratio),
    }
    if first:
        metrics["val/ratio_max_gap_first"] = Max.of((probability_ratio(sampled, recorded) - 1).abs())
        if terms.anchor != "recomputed":  # else it is known of all rows (`training/experience.py` describes it)
            metrics |= mismatch_metrics(sampled, recorded, micro.rollout.action_counts)
        surprise = -recorded - now.entropy.detach()
        metrics["policy/surprise_gap"] = Mean.of(surprise)
        metrics["policy/surprise_error"] = StandardError.of(surprise)
    if micro.anchor_share is not None:
        rows = action_rows(micro.rollout)
        metrics |= importance_metrics(terms.correction, at.importance, at.token_anchor.sampled, recorded, rows)
    return Metrics(metrics)


def value_objective(micro: Experience, now: StateOutputs, head: ValueHead) -> tuple[Tensor, Metrics]:
    """Sum of the value loss over the states before every action, and after the stop token where it is trained.

    States count by their weights, where they have some; the divisor is the number of states either way.
    Raises TrainingError where the head returns no losses for the states.
    """
    final = micro.train_final
    outputs, members = torch.cat([now.before_actions, now.final[final]]), micro.members
    old, old_final = (micro.values, micro.final_values) if members is None else (members.own, members.final_own)
    learned = ValueTargets(
        targets=torch.cat([micro.returns, micro.final_returns[final]]),
        old_values=torch.cat([old, old_final[final]]),
        samples=torch.cat([micro.of_actions(micro.sample_numbers), micro.sample_numbers[final]]),
        columns=None if micro.by_reward is None else micro.by_reward.returns,  # no final state is trained then
    )
    loss = head.loss(outputs, learned)
    _require_none("value head", head, state_numbers_problem(loss, len(outputs), "loss"))
    if micro.value_weights is not None:  # no action follows the final states whose probability could have changed
        loss = torch.cat([micro.value_weights, torch.ones_like(micro.final_values[final])]) * loss

    metrics: dict[str, Metric] = {"loss/value_avg": Mean.of(loss)}
    if isinstance(head, MeasuresStates):
        measured = head.measures(outputs.detach(), learned)
        metrics |= {f"val/{name}": Mean.of(values) for name, values in measured.items()}
    return loss.sum(), Metrics(metrics)
