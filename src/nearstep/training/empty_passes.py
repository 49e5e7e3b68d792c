"""Passes over nothing, for processes that make passes in step with others and have fewer rows than these."""

from collections.abc import Collection, Iterator

import torch
from torch import Tensor

from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_logprobs_and_outputs, rollout_outputs
from nearstep.models.roles import Critic
from nearstep.scale.turns import equal_passes
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import Phase
from nearstep.types import Experience, Rollout


def critics_with_rows(minibatch: Experience, r: Recipe) -> frozenset[int]:
    """Numbers of the critics that some process has a row of a minibatch for, where all must run as many passes.

    The others have no pass, and so no gradient: one of zeros would be a step along Adam's moments.
    """
    count = 0 if r.models.critic is None else len(r.models.critic.members)
    if count < 2 or not equal_passes(r.backend):
        return frozenset(range(count))
    return frozenset().union(*r.backend.gather((minibatch.sample_numbers % count).tolist()))


def empty_losses(phase: Phase, r: Recipe, critics: Collection[int] = (0,)) -> Iterator[Tensor]:
    """Losses of 0, one for each pass that a micro-batch of this phase takes, through the same weights; of several
    critics those of these numbers.

    Their gradients are zeros, so they change no number: what is summed is divided by counts that know nothing of them.
    They ask what a micro-batch asks, for processes may answer each other's questions in one pass.
    """
    policy, critic, rollout = r.models.policy, r.models.critic, _two_tokens(r.backend.device)
    entropy, normalizers = r.config.entropy_coef != 0, r.auxiliary.log_normalizers
    if phase.policy and phase.critic and isinstance(critic, Critic) and r.models.one_trunk:
        now, outputs = rollout_logprobs_and_outputs(
            policy, critic, rollout, r.sampling, entropy_gradient=entropy, log_normalizers=normalizers
        )
        yield _nothing_of(now.sampled) + _nothing_of(outputs.before_actions)
        return
    if phase.policy:
        now = rollout_logprobs(policy, rollout, r.sampling, entropy_gradient=entropy, log_normalizers=normalizers)
        yield _nothing_of(now.sampled)
    if phase.critic and critic is not None:
        yield from (empty_critic_loss(critic.members[number], r) for number in sorted(critics))


def empty_text_loss(r: Recipe) -> Tensor:
    """A loss of 0 of one pass over texts."""
    return _nothing_of(rollout_logprobs(r.models.policy, _two_tokens(r.backend.device), Sampling()).sampled)


def empty_critic_loss(critic: Critic, r: Recipe) -> Tensor:
    """A loss of 0 of one pass of a critic."""
    outputs = rollout_outputs(critic, _two_tokens(r.backend.device), head_only=r.models.one_trunk)
    return _nothing_of(outputs.before_actions)


def _nothing_of(values: Tensor) -> Tensor:
    return (values * 0).sum()


def _two_tokens(device: torch.device) -> Rollout:
    """A row of one prompt token and one action."""
    return Rollout(
        tokens=torch.zeros(2, dtype=torch.long, device=device),
        is_action=torch.tensor([False, True], device=device),
        row_lengths=torch.tensor([2], device=device),
        logprobs=torch.zeros(1, device=device),
        finished=torch.tensor([True], device=device),
        policy_version=torch.zeros(1, dtype=torch.long, device=device),
    )
