"""Every number of one row on its way from the engine's log-prob to the gradient: what `nearstep replay` prints."""

from dataclasses import dataclass, replace

import torch

from nearstep.algorithm.kl import kl_estimate
from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.objectives import PolicyTerms, policy_objective
from nearstep.training.recipe import Recipe
from nearstep.training.update import divisors_of
from nearstep.types import Experience


@dataclass(frozen=True)
class TokenTrace:
    """One action. Log-probs in nats; a number that a run does not have (no reference, no critic) is None."""

    token: int
    sampled_logprob: float  # recorded by the engine
    old_logprob: float  # what the ratio is taken against
    logprob: float  # of the policy as it is now
    ref_logprob: float | None
    kl: float | None  # by the run's estimator
    value: float | None
    reward: float  # score and KL penalty, where they stand
    advantage: float  # before whitening
    whitened_advantage: float  # what the loss multiplies with
    return_: float | None
    ratio: float
    region_weight: float  # the trust region's: 0 where it may not move
    gradient: float  # of the policy's loss by this log-prob, in the first minibatch if the batch were one


def trace_row(experience: Experience, row: int, r: Recipe) -> list[TokenTrace]:
    """Trace the actions of a row of a whole batch's experience, as the first optimizer step would see them."""
    one = experience.select(torch.tensor([row], device=experience.scores.device))
    terms, divisors = PolicyTerms.of(r), divisors_of(experience, r.loss_aggregation, r.backend)
    with torch.no_grad():
        now = rollout_logprobs(r.models.policy, one.rollout, r.sampling)
    leaf = now.sampled.detach().clone().requires_grad_()
    loss, _ = policy_objective(one, replace(now, sampled=leaf), terms, first=True)
    (loss / divisors.policy).backward()
    top = None if now.top is None else now.top.detach()
    weight = r.trust_region.weight(
        TokenLogprobs(now.sampled, top),
        TokenLogprobs(one.old_logprobs, one.old_top),
        one.advantages,
        ActionRows(one.rollout.action_counts, one.rollout.policy_version),
    )
    has_critic, ref = r.models.critic is not None, one.ref_logprobs
    kl = None if ref is None else kl_estimate(one.rollout.logprobs, ref, r.config.kl_estimator).tolist()
    ratio = probability_ratio(now.sampled, one.old_logprobs)
    gradient = leaf.grad
    assert gradient is not None, "the policy's loss depends on every log-prob"
    return [
        TokenTrace(
            token=int(one.rollout.actions[place]),
            sampled_logprob=float(one.rollout.logprobs[place]),
            old_logprob=float(one.old_logprobs[place]),
            logprob=float(now.sampled[place]),
            ref_logprob=None if ref is None else float(ref[place]),
            kl=None if kl is None else kl[place],
            value=float(one.values[place]) if has_critic else None,
            reward=float(one.rewards[place]),
            advantage=float(one.raw_advantages[place]),
            whitened_advantage=float(one.advantages[place]),
            return_=float(one.returns[place]) if has_critic else None,
            ratio=float(ratio[place]),
            region_weight=float(weight[place]),
            gradient=float(gradient[place]),
        )
        for place in range(len(one.old_logprobs))
    ]
