"""Passes over nothing go through every weight that a micro-batch's do, and their gradients are zeros."""

import pytest
import torch

from nearstep.training.empty_passes import empty_losses
from nearstep.training.schedules import Phase
from tests.training.runs import small_recipe

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
