"""How a critic trains on stored rollouts before the first update."""

from pathlib import Path

import torch

from nearstep.common.errors import TrainingError
from nearstep.common.random_streams import stream
from nearstep.common.telling import tell
from nearstep.metrics import ExplainedVariance, Metrics
from nearstep.training.experience import annotate
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.training.state import State, Steps
from nearstep.training.stored_rollouts import SETTING, StoredRollouts
from nearstep.training.update import improve, minibatches
from nearstep.types import Experience

EXPLAINED, LOSS = "value/pretrain_explained_variance", "value/pretrain_loss"
ALONE = Phase(0, 1, policy=False, critic=True)


def pretrain_critic(r: Recipe, state: State) -> Metrics:
    """Train the critic on the rollouts and scores of vf_pretrain_rollouts; returns what its last pass measured.

    It is done once in a run, before its first update: one that goes on has done it. Rewards are made of the stored
    scores by this run's own settings, the KL to its own reference included, and targets have λ = vf_warmup_lam. The
    policy stays as it is; the critic's learning rate is at its peak. Raises TrainingError where no step could be taken.
    """
    folder, learner = r.config.vf_pretrain_rollouts, r.learners.critic
    if folder is None or learner is None or state.critic_is_pretrained or state.update > 0:
        return Metrics()
    stored, past = StoredRollouts.of(Path(folder)), State()
    if r.config.normalize_scores != "none":  # by the moments of all stored scores, which the run's own do not know
        for update in stored.updates:
            past.update_score_moments(stored.share(update, r.backend)[1], r.config, r.backend)
    metrics = Metrics()
    with learner.at_peak():
        for epoch in range(r.config.vf_pretrain_epochs):
            metrics, steps = _one_pass(epoch, stored, past, r)
            _tell(epoch, metrics, steps, r)
            state.steps += steps
    r.learners.free_gradients()
    state.critic_is_pretrained = True
    return metrics


def _one_pass(epoch: int, stored: StoredRollouts, past: State, r: Recipe) -> tuple[Metrics, Steps]:
    """Every stored update once, in an order of its own; values are measured before the steps on them."""
    metrics, steps, updates = Metrics(), Steps(), stored.updates
    draws = stream(r.config.seed, "pretraining", epoch)
    for place, number in enumerate(torch.randperm(len(updates), generator=draws).tolist()):
        rollout, scores = stored.share(updates[number], r.backend)
        experience = annotate(rollout, scores, r, past)
        experience = experience.select(experience.trained.nonzero().squeeze(-1))
        if sum(r.backend.gather(len(experience))) == 0:
            continue
        metrics += Metrics({EXPLAINED: ExplainedVariance.of(experience.returns, experience.values)})
        of_batch, taken = _learn(experience, epoch * len(updates) + place, r)
        metrics, steps = metrics + of_batch, steps + taken
    if steps.critic == 0:
        raise TrainingError(
            f"{SETTING} = {stored.folder}: no optimizer step could be taken in pass {epoch + 1} ({steps.skipped} were "
            "left out). Its rows have no scores, or the warnings above say what was not finite"
        )
    return metrics, steps


def _learn(experience: Experience, draw: int, r: Recipe) -> tuple[Metrics, Steps]:
    """One pass of the critic over the minibatches of a stored update."""
    metrics, steps = Metrics(), Steps()
    for minibatch in minibatches(experience, ALONE, draw, r):
        of_step, taken = improve(minibatch, ALONE, r, first=False)
        if (loss := of_step.by_name.get("loss/value_avg")) is not None:  # this process may have none of its rows
            metrics += Metrics({LOSS: loss})
        steps += Steps(critic=1) if taken else Steps(skipped=1)
    return metrics, steps


def _tell(epoch: int, metrics: Metrics, steps: Steps, r: Recipe) -> None:
    """How a pass went, over all processes."""
    found = sum(r.backend.gather(metrics.cpu()), start=Metrics()).numbers()
    explained = f", explained variance {found[EXPLAINED]:.3f} before them" if EXPLAINED in found else ""
    passes = f"{epoch + 1} of {r.config.vf_pretrain_epochs}"
    tell(f"critic on stored rollouts, pass {passes}: {steps.critic} steps, value loss {found[LOSS]:.4g}{explained}")
