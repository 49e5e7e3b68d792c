"""How a policy and its critic improve on an experience: epochs, minibatches, micro-batches, optimizer steps."""

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import repeat

import torch
from torch import Tensor

from nearstep.algorithm.aggregation import LossAggregation, MinibatchCounts
from nearstep.algorithm.ragged import first_alike
from nearstep.common.errors import TrainingError
from nearstep.common.random_streams import stream
from nearstep.data.text_rows import TextRows
from nearstep.metrics import Mean, Metrics
from nearstep.scale.backend import Backend
from nearstep.scale.shards import lying_alike
from nearstep.scale.turns import turns_of
from nearstep.training.auxiliary import AuxiliaryLoss, auxiliary_divisors
from nearstep.training.axis_results import divisor_problem
from nearstep.training.empty_passes import critics_with_rows, empty_losses, empty_text_loss
from nearstep.training.objectives import Divisors, losses
from nearstep.training.ptx import pretraining_losses, pretraining_parts, steps_before
from nearstep.training.recipe import Recipe
from nearstep.training.reweighting import reweighted
from nearstep.training.schedules import Phase
from nearstep.training.state import Steps
from nearstep.types import Experience

EARLY_STOP_FACTOR = 1.5  # early_stop_kl may be exceeded by half, as is the habit of PPO implementations


def update(experience: Experience, phases: Sequence[Phase], r: Recipe) -> tuple[Metrics, Steps]:
    """Run the phases over an experience: epochs × minibatches optimizer steps in each, whatever the micro-batches are.

    A phase that trains the policy ends early once the policy has left the sampling one by more than early_stop_kl.
    Metrics are those of this process and add up over processes; steps are the same on all of them.
    """
    metrics, steps = Metrics(), Steps()
    experience = experience.select(experience.trained.nonzero().squeeze(-1))
    if sum(r.backend.gather(len(experience))) == 0:
        return metrics, steps
    texts = _texts(phases, r)
    for phase in phases:
        of_phase = experience
        if phase.reweight is not None:
            of_phase, of_weights = reweighted(experience, phase.reweight, r)
            metrics += of_weights
        for epoch in range(phase.epochs):
            epoch_metrics = Metrics()
            for minibatch in minibatches(of_phase, phase, epoch, r):
                share = next(texts) if phase.policy else None
                step_metrics, taken = improve(minibatch, phase, r, first=steps.policy == 0, texts=share)
                epoch_metrics += step_metrics
                steps += Steps(int(phase.policy), int(phase.critic)) if taken else Steps(skipped=1)
            metrics += epoch_metrics
            if phase.policy and _went_too_far(epoch_metrics, r.config.early_stop_kl, r.backend):
                break
    r.learners.free_gradients()
    return metrics, steps


def minibatches(experience: Experience, phase: Phase, epoch: int, r: Recipe) -> Iterator[Experience]:
    """This process's rows of each minibatch. Which rows of the batch come together does not depend on the processes.

    Samples of one prompt come together, and rows with one prompt stand beside each other, so that every micro-batch
    computes its prompts once.
    """
    numbers_by_rank = r.backend.gather(experience.prompt_numbers.cpu())
    numbers, first = torch.cat(numbers_by_rank), sum(map(len, numbers_by_rank[: r.backend.rank]))
    draws = stream(r.config.seed, "minibatches", phase.update, epoch)
    turns = torch.randperm(int(numbers.max()) + 1, generator=draws).argsort()  # when a prompt's turn comes
    rollout = experience.rollout
    same_prompt = first_alike(rollout.tokens, rollout.row_lengths, rollout.prompt_lengths).cpu()
    for rows in turns[numbers].argsort(stable=True).tensor_split(r.batch.minibatches):
        mine = rows[(rows >= first) & (rows < first + len(experience))] - first
        mine = mine[same_prompt[mine].argsort(stable=True)]
        yield experience.select(mine.to(experience.scores.device))


def _texts(phases: Sequence[Phase], r: Recipe) -> Iterator[TextRows | None]:
    """What each step of the policy takes of the pretraining data, over all processes; None where there is none."""
    pretraining = r.auxiliary.pretraining
    if pretraining is None or not phases:
        return repeat(None)
    return pretraining.batches(steps_before(phases[0].update, r.schedule, r.batch.minibatches))


def improve(
    minibatch: Experience, phase: Phase, r: Recipe, *, first: bool, texts: TextRows | None = None
) -> tuple[Metrics, bool]:
    """One optimizer step on a minibatch, and on the texts of a pretraining loss; and whether it was taken.

    The weighted sum of token losses is divided by a count over all processes, fixed before the split into
    micro-batches, so that no split changes a gradient. Where a gradient is not finite on any process no process takes
    the step: weights and moments stay as they are, and a warning says what was not finite.
    """
    learners = r.learners.of(phase)
    for learner in learners.values():
        learner.free_gradients()
    divisors = divisors_of(minibatch, r.loss_aggregation, r.backend, r.auxiliary.losses if phase.policy else ())
    metrics = Metrics()
    for loss, loss_metrics in _all_losses(minibatch, texts, phase, divisors, r, first=first):
        r.backend.backward(loss)
        metrics += loss_metrics
        for learner in learners.values():
            learner.take_gradients()
    for learner in learners.values():
        r.backend.add_up_gradients(learner.parameters)
    norms = {name: r.backend.gradient_norm(learner.parameters) for name, learner in learners.items()}
    total = torch.stack(list(norms.values())).norm()
    metrics += Metrics({f"{name}/grad_norm": Mean.of(norm) for name, norm in norms.items()})
    if not torch.isfinite(total):
        _warn_of_skipped_step(minibatch, metrics, phase.update)
        return Metrics(), False  # one such number would hide every mean of the update
    for learner in learners.values():
        if r.config.max_grad_norm is not None:
            for alike in lying_alike(learner.parameters):
                torch.nn.utils.clip_grads_with_norm_(alike, r.config.max_grad_norm, total)
        learner.step()
    return metrics, True


def _all_losses(
    minibatch: Experience, texts: TextRows | None, phase: Phase, divisors: Divisors, r: Recipe, *, first: bool
) -> Iterator[tuple[Tensor, Metrics]]:
    """The losses of this process's share of a step: of its micro-batches, then of its texts; where processes must run
    as many passes as each other, empty ones stand between."""
    micro_batches = list(minibatch.split(r.batch.micro_tokens, r.batch.micro_rows))
    critics, left = critics_with_rows(minibatch, r), iter(micro_batches)
    for has_turn in turns_of(micro_batches, _tokens_computed, r.batch.micro_tokens, r.backend):
        if has_turn:
            yield from losses(next(left), phase, divisors, r, critics, first=first)
        else:
            yield from ((loss, Metrics()) for loss in empty_losses(phase, r, critics))
    pretraining = r.auxiliary.pretraining
    if texts is None or pretraining is None:
        return
    parts = pretraining_parts(texts, r.batch, r.backend)
    of_texts = pretraining_losses(texts, pretraining.coef, r.models.policy, r.batch, r.backend)
    for has_turn in turns_of(parts, lambda part: int(part.lengths.sum()), r.batch.micro_tokens, r.backend):
        yield next(of_texts) if has_turn else (empty_text_loss(r), Metrics())


def _tokens_computed(micro: Experience) -> int:
    """By a pass over these rows, as the critic reads them."""
    read = micro.critic_rollout
    return int((read.row_lengths - read.shared_prompts).sum())


def _warn_of_skipped_step(minibatch: Experience, metrics: Metrics, update: int) -> None:
    """Say what of a minibatch was not finite, in the order in which one thing follows from another."""
    inputs = {
        "score": minibatch.scores,
        "log-probs at sampling": minibatch.old_logprobs,
        "log-probs of the reference": minibatch.ref_logprobs,
        "log-probs of the teacher": minibatch.teacher_logprobs,
        "weights of the correction": minibatch.importance,
        "weights of states": minibatch.value_weights,
        "values": minibatch.values,
        "rewards": minibatch.rewards,
        "advantages": minibatch.advantages,
        "returns": minibatch.returns,
    }
    broken = [name for name, values in inputs.items() if values is not None and not bool(values.isfinite().all())]
    numbers = metrics.numbers()
    broken = broken or [name for name, number in numbers.items() if not math.isfinite(number)]
    warnings.warn(
        f"update {update}: an optimizer step is left out, for the gradient is not finite. Not finite here: "
        f"{', '.join(broken) or 'nothing, it came from another process'}. Weights and optimizers stay as they are",
        stacklevel=3,
    )


def divisors_of(
    minibatch: Experience, aggregation: LossAggregation, backend: Backend, auxiliary: Sequence[AuxiliaryLoss] = ()
) -> Divisors:
    """The policy's by the loss aggregation, the critic's the number of states it is trained on, each auxiliary loss's
    its own count."""
    actions = torch.tensor(len(minibatch.old_logprobs), device=minibatch.scores.device)
    states = actions + minibatch.train_final.sum()
    rows = (minibatch.rollout.action_counts > 0).sum()
    actions, states, rows = backend.add_up(torch.stack([actions, states, rows]))
    divisor = aggregation.divisor(MinibatchCounts(tokens=actions, rows=rows))
    problem = divisor_problem(float(divisor))
    if problem:
        raise TrainingError(
            f"loss aggregation {type(aggregation).__name__}: divisor for {int(actions)} tokens in {int(rows)} rows "
            f"{problem}"
        )
    return Divisors(divisor, states.clamp(min=1), auxiliary_divisors(minibatch, auxiliary, backend))


def _went_too_far(epoch_metrics: Metrics, limit: float | None, backend: Backend) -> bool:
    """Whether the mean ½ (log ρ)² of an epoch, over all processes, is beyond the limit, early_stop_kl."""
    if limit is None:
        return False
    merged = sum(backend.gather(epoch_metrics.cpu()), start=Metrics()).numbers()
    return merged.get("policy/approxkl_avg", 0.0) > EARLY_STOP_FACTOR * limit  # absent where every step was left out
