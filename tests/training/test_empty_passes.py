"""Passes over nothing go through every weight that a micro-batch's do, and their gradients are zeros."""

from dataclasses import dataclass, replace

import pytest
import torch

from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.empty_passes import critics_with_rows, empty_losses
from nearstep.training.experience import make_experience
from nearstep.training.schedules import Phase
from tests.training.runs import play, small_recipe

BOTH = {"policy": True, "critic": True}


@pytest.mark.parametrize(
    ("trunk", "phase", "passes"),
    [
        ("separate", BOTH, 2),
        ("separate", {"policy": True, "critic": False}, 1),
        ("separate", {"policy": False, "critic": True}, 1),
        ("shared", BOTH, 1),
        ("shared", {"policy": False, "critic": True}, 1),
    ],
)
def test_every_weight_of_the_phase_gets_a_gradient_of_zeros(tmp_path, trunk, phase, passes):
    r = small_recipe(tmp_path, critic_trunk=trunk)
    phase = Phase(0, 1, **phase)
    losses = [loss.detach() if loss.backward() is None else loss for loss in empty_losses(phase, r)]
    assert losses == [torch.zeros(())] * passes
    for learner in r.learners.of(phase).values():
        for weight in learner.parameters:
            assert weight.grad is not None
            assert not weight.grad.any()


@dataclass(frozen=True)
class BesideAnother(TorchBackend):
    """A process that gathers weights with another one, which has rows of the second critic alone."""

    @property
    def in_step(self):
        return True

    def gather(self, item):
        return [item, [1]]


@pytest.mark.parametrize(("own", "found"), [([0, 2, 3], {0, 1}), ([1, 3], {1}), ([], {1})])
def test_a_critic_that_no_process_has_a_row_for_has_no_pass_and_no_gradient(tmp_path, own, found):
    """A gradient of zeros would be a step along Adam's moments, which one process does not take."""
    r = small_recipe(tmp_path, critic_models=2, num_generations=4, batch_size=8)
    _, rollout, scores = play(r)
    rows = make_experience(rollout, scores, r).select(torch.tensor(own, dtype=torch.long))
    r = replace(r, backend=BesideAnother(**vars(r.backend)))
    critics = critics_with_rows(rows, r)
    assert critics == found
    for loss in empty_losses(Phase(0, 1, policy=False, critic=True), r, critics):
        loss.backward()
    for number, critic in enumerate(r.models.critic.members):
        assert all((weight.grad is not None) == (number in found) for weight in critic.model.parameters())
