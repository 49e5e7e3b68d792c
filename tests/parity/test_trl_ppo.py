"""One whole update of PPO against TRL 1.8.0, on rollouts that TRL sampled: every number from KL to the new weights.

`tests/parity/record/ppo.py` made the numbers.
"""

import pytest
import torch

from nearstep.algorithm.advantages import gae
from nearstep.algorithm.statistics import whiten
from tests.parity.record import world
from tests.parity.record.scenarios import SCENARIOS
from tests.parity.recordings import RECORDED, below, read
from tests.parity.replay import networks, recipe_like, recorded_steps, replay

TOLERANCE = {"atol": 1e-6, "rtol": 1e-6}


class Replayed:
    """A scenario's update in both libraries. The arrays of TRL are flat here: actions back to back."""

    def __init__(self, scenario, folder):
        self.recording = read(RECORDED / f"ppo_{scenario}.npz")
        self.trl = below(self.recording, "1/")
        self.settings = SCENARIOS[scenario]
        self.recipe = recipe_like(self.recording, self.settings, folder)
        self.experience, self.steps = replay(self.recording, 1, self.recipe)

    def actions(self, name):
        return self.trl[name][~self.trl["padding_mask"]]

    def finals(self, name):
        """The column after the last action, for rows that TRL pays there."""
        rows = self.experience.train_final
        return self.trl[name][rows, self.trl["sequence_lengths"][rows] + 1]


@pytest.fixture(scope="module", params=["plain", "shaped"])
def replayed(request, tmp_path_factory):
    return Replayed(request.param, tmp_path_factory.mktemp(request.param))


def test_the_rollout_has_rows_of_every_kind(replayed):
    """Rows that end early, and rows that are cut; else the score's place would not be tested."""
    early = replayed.experience.train_final
    assert early.any()
    assert not early.all()
    assert len({len(ids) for ids in replayed.experience.rollout.prompt_ids()}) > 1


def test_scores_carry_the_penalty(replayed):
    torch.testing.assert_close(replayed.experience.scores, replayed.trl["scores"], **TOLERANCE)
    penalised = bool((replayed.trl["scores"] != replayed.trl["raw_scores"]).any())
    assert penalised == ("missing_eos_penalty" in replayed.settings)


@pytest.mark.parametrize("name", ["ref_logprobs", "values", "rewards", "advantages", "returns"])
def test_experience_agrees_at_every_action(replayed, name):
    ours = vars(replayed.experience)[name]
    torch.testing.assert_close(ours, replayed.actions(name), **TOLERANCE)


def test_the_state_after_the_stop_token_agrees(replayed):
    rows = replayed.experience.train_final
    torch.testing.assert_close(replayed.experience.final_values[rows], replayed.finals("values"), **TOLERANCE)
    torch.testing.assert_close(replayed.experience.final_returns[rows], replayed.finals("returns"), **TOLERANCE)
    torch.testing.assert_close(replayed.experience.final_returns[rows], replayed.finals("rewards"), **TOLERANCE)


def test_gae_and_whitening_on_trl_s_own_numbers(replayed):
    """The two steps alone, so that no rounding of a forward pass comes in."""
    values, rewards, paid_later = (
        replayed.actions("values"),
        replayed.actions("rewards"),
        replayed.experience.train_final,
    )
    final_values, final_rewards = torch.zeros(len(paid_later)), torch.zeros(len(paid_later))
    final_values[paid_later], final_rewards[paid_later] = replayed.finals("values"), replayed.finals("rewards")
    config = replayed.recipe.config
    advantages = gae(
        rewards, values, replayed.experience.rollout.action_counts, final_values=final_values,
        final_advantages=final_rewards - final_values, gamma=config.gamma, lam=config.lam,
    )  # fmt: skip
    torch.testing.assert_close(advantages + values, replayed.actions("returns"), **TOLERANCE)
    torch.testing.assert_close(whiten(advantages), replayed.actions("advantages"), **TOLERANCE)


def test_losses_of_every_step_agree(replayed):
    theirs = recorded_steps(replayed.recording, 1)
    assert len(theirs) == len(replayed.steps) == replayed.settings["num_ppo_epochs"]
    for ours, trl in zip(replayed.steps, theirs, strict=True):
        assert vars(ours) == pytest.approx(vars(trl), rel=1e-5, abs=1e-6)


def test_both_clips_bind_in_the_recording(replayed):
    """Else the losses above would say nothing of clipping."""
    last = f"{replayed.settings['num_ppo_epochs'] - 1}/"
    assert replayed.trl[last + "pg_clipped"] > 0.05
    assert replayed.trl[last + "vf_clipped"] > 0.05


def test_weights_after_the_update_agree(replayed):
    for role, network in networks(replayed.recipe).items():
        before = below(replayed.recording, f"0/weights/{role}/")
        after = below(replayed.trl, f"weights/{role}/")
        ours = network.state_dict()
        assert ours.keys() == after.keys()
        for name, weights in after.items():
            torch.testing.assert_close(ours[name], weights, atol=1e-5, rtol=1e-5)
        moved = torch.cat([(after[name] - before[name]).flatten() for name in after])
        gap = torch.cat([(ours[name] - after[name]).flatten() for name in after])
        assert moved.norm() > 0.01
        assert gap.norm() < 1e-5 * moved.norm(), "the step itself agrees, not only where it began"


def test_the_learning_rate_moves_on_once_per_update(replayed):
    rate = replayed.recipe.learners.policy.learning_rate
    assert rate == pytest.approx(float(replayed.trl["next_learning_rate"]))


def test_pad_is_never_sampled_in_the_recording(replayed):
    """TRL would have taken it for padding."""
    assert not (replayed.experience.rollout.tokens == world.PAD).any()
