"""How a policy and its critic improve on an experience: epochs, minibatches, micro-batches, optimizer steps."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nearstep.algorithm.kl import kl_estimate
from nearstep.algorithm.losses import clip_values, clipped_surrogate, policy_loss, probability_ratio, value_loss
from nearstep.algorithm.trust_regions import Clip, TokenLogprobs
from nearstep.errors import TrainingError
from nearstep.models.forward import rollout_logprobs, rollout_values
from nearstep.streams import stream
from nearstep.training.optimizers import Learner
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.types import Experience, Max, Mean, Metric, Metrics, Spread


def update(experience: Experience, phases: Sequence[Phase], r: Recipe) -> Metrics:
    """Run the phases over an experience: epochs × minibatches optimizer steps in each, whatever the micro-batches are.

    Metrics are those of this process; they add up over processes.
    """
    metrics = Metrics()
    for phase in phases:
        for epoch in range(phase.epochs):
            for number, minibatch in enumerate(minibatches(experience, phase, epoch, r)):
                metrics += improve(minibatch, phase, r, first=epoch == 0 and number == 0)
    return metrics


def minibatches(experience: Experience, phase: Phase, epoch: int, r: Recipe) -> Iterator[Experience]:
    """This process's rows of each minibatch. Which rows of the batch come together does not depend on the processes."""
    rows_by_rank = r.backend.gather(len(experience))
    first = sum(rows_by_rank[: r.backend.rank])
    order = torch.randperm(sum(rows_by_rank), generator=stream(r.config.seed, "minibatches", phase.update, epoch))
    for rows in order.tensor_split(r.batch.minibatches):
        mine = rows[(rows >= first) & (rows < first + len(experience))] - first
        yield experience.select(mine.to(experience.scores.device))


def improve(minibatch: Experience, phase: Phase, r: Recipe, *, first: bool) -> Metrics:
    """One optimizer step on a minibatch.

    The sum of token losses is divided by the number of tokens over all processes, fixed before the split into
    micro-batches, so that no split changes a gradient.
    """
    learners = r.learners.of(phase)
    for learner in learners.values():
        learner.optimizer.zero_grad(set_to_none=True)
    actions, states = _global_counts(minibatch, r)
    metrics = Metrics()
    for micro in minibatch.split(r.batch.micro_tokens, r.batch.micro_rows):
        if phase.policy:
            loss, of_policy = policy_objective(micro, r, first=first)
            (loss / actions).backward()
            metrics += of_policy
        if phase.critic:
            loss, of_critic = value_objective(micro, r)
            weight = r.config.vf_coef if phase.policy else 1.0  # alone, its optimizer sets the scale
            (weight * loss / states).backward()
            metrics += of_critic
    for learner in learners.values():
        r.backend.add_up_gradients(learner.parameters)
    metrics += _clip(learners, phase, r)
    for learner in learners.values():
        learner.optimizer.step()
    return metrics


def policy_objective(micro: Experience, r: Recipe, *, first: bool) -> tuple[Tensor, Metrics]:
    """Sum of the policy loss over the actions of a micro-batch."""
    now = rollout_logprobs(r.models.policy, micro.rollout, r.sampling)
    old = TokenLogprobs(micro.old_logprobs, micro.old_top)
    fixed = TokenLogprobs(now.sampled.detach(), None if now.top is None else now.top.detach())
    inside = r.trust_region.inside(fixed, old, micro.advantages)
    loss = micro.importance * policy_loss(now.sampled, old.sampled, micro.advantages, inside, r.ratio_cap)

    ratio = probability_ratio(fixed.sampled, old.sampled)
    moved = (fixed.sampled.exp() - old.sampled.exp()).abs()
    shown = loss.detach()
    if isinstance(r.trust_region, Clip):
        clip = r.trust_region
        shown = clipped_surrogate(ratio, micro.advantages, low=clip.low, high=clip.high, dual=clip.dual)
    metrics: dict[str, Metric] = {
        "loss/policy_avg": Mean.of(shown),
        "policy/approxkl_avg": Mean.of((fixed.sampled - old.sampled).square() / 2),
        "policy/clipfrac_avg": Mean.of((~inside).float()),
        "policy/masked_positive": Mean.of((~inside)[micro.advantages > 0].float()),
        "policy/masked_negative": Mean.of((~inside)[micro.advantages < 0].float()),
        "policy/prob_diff_mean": Mean.of(moved),
        "policy/prob_diff_max": Max.of(moved),
        "policy/entropy_avg": Mean.of(now.entropy),
        "val/ratio": Mean.of(ratio),
        "val/ratio_var": Spread.of(ratio),
    }
    if first:
        metrics["val/ratio_max_gap_first"] = Max.of((ratio - 1).abs())
        metrics["policy/mismatch_kl"] = Mean.of(kl_estimate(old.sampled, fixed.sampled, "k3"))
    return loss.sum(), Metrics(metrics)


def value_objective(micro: Experience, r: Recipe) -> tuple[Tensor, Metrics]:
    """Sum of the value loss over the states before every action, and after the stop token where it is trained."""
    assert r.models.critic is not None, "a value loss needs a critic"
    now = rollout_values(r.models.critic, micro.rollout)
    final = micro.train_final
    values = torch.cat([now.before_actions, now.final[final]])
    old_values = torch.cat([micro.values, micro.final_values[final]])
    returns = torch.cat([micro.returns, micro.final_returns[final]])
    loss = value_loss(values, old_values, returns, cliprange=r.config.cliprange_value)

    fixed = values.detach()
    clipped = clip_values(fixed, old_values, r.config.cliprange_value)
    bound = (clipped - returns).square() > (fixed - returns).square()
    metrics = {"loss/value_avg": Mean.of(loss), "val/clipfrac_avg": Mean.of(bound.float())}
    return loss.sum(), Metrics(metrics)


def _global_counts(minibatch: Experience, r: Recipe) -> tuple[Tensor, Tensor]:
    """Actions, and states that the critic is trained on, over all processes; at least 1, for they divide."""
    actions = len(minibatch.old_logprobs)
    states = actions + int(minibatch.train_final.sum())
    counts = r.backend.add_up(torch.tensor([actions, states], device=minibatch.scores.device))
    return counts[0].clamp(min=1), counts[1].clamp(min=1)


def _clip(learners: dict[str, Learner], phase: Phase, r: Recipe) -> Metrics:
    """Scale the gradients of the networks that train together down to max_grad_norm; their norms before, by network."""
    norms = {name: r.backend.gradient_norm(learner.parameters) for name, learner in learners.items()}
    total = torch.stack(list(norms.values())).norm()
    if not torch.isfinite(total):
        raise TrainingError(
            f"update {phase.update}: the gradient is not finite. The weights are those before this step. Look at "
            "the last "
            "rows of rollouts.jsonl, lower learning_rate, or check the reward."
        )
    if r.config.max_grad_norm is not None:
        for learner in learners.values():
            torch.nn.utils.clip_grads_with_norm_(learner.parameters, r.config.max_grad_norm, total)
    return Metrics({f"{name}/grad_norm": Mean.of(norm) for name, norm in norms.items()})
