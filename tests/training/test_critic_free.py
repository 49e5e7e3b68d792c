"""Advantages without a critic: none is loaded, trained or saved, and the policy learns all the same."""

import pytest
import torch

from nearstep import ConfigError, ModelError
from nearstep.training.experience import make_experience
from tests.tiny import tiny_scalar_model
from tests.trainer.test_trainer import trainer_of
from tests.training.runs import learner, learning, play, settings, small_recipe


def test_group_mean_by_hand(tmp_path):
    recipe = small_recipe(tmp_path, advantage="group_mean", num_generations=4, kl_coef=0.0, dtype=torch.float64)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    totals = scores.total.double().view(2, 4)
    expected = (totals - totals.mean(1, keepdim=True)).flatten().repeat_interleave(rollout.action_counts)
    torch.testing.assert_close(experience.advantages, expected)
    assert rollout.prompt_ids()[0] == rollout.prompt_ids()[3] != rollout.prompt_ids()[4]


def test_batch_normalized_returns_have_mean_0_and_variance_1(tmp_path):
    recipe = small_recipe(tmp_path, advantage="batch_normalized", kl_coef=0.1, dtype=torch.float64)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    assert experience.advantages.mean().abs() < 1e-9
    assert experience.advantages.var().item() == pytest.approx(1, abs=1e-5)
    assert experience.values.abs().max() == 0


RULES, REGIONS = ("group_mean", "group_normalized", "leave_one_out", "batch_normalized"), ("clip", "binary_tv")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("advantage", "region"),
    [  # one pair always, all of them in the slow lane
        pytest.param(rule, region, marks=[] if (rule, region) == ("group_normalized", "clip") else pytest.mark.slow)
        for rule in RULES
        for region in REGIONS
    ],
)
def test_learning_without_a_critic(tmp_path, advantage, region):
    config = learning(tmp_path, advantage=advantage, num_generations=8, trust_region=region)
    trainer = trainer_of(tmp_path, config=config, model=learner())
    assert trainer.value_model is None
    output = trainer.train()
    assert trainer.recipe.report.reporter.latest["objective/scores"] > 0.95
    assert output.value is None
    assert not (tmp_path / "value").exists()


def test_clashes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="num_generations must be at least 2"):
        settings(tmp_path, advantage="group_mean")
    with pytest.raises(ModelError, match="value_model: advantage = leave_one_out has no critic"):
        small_recipe(tmp_path, advantage="leave_one_out", num_generations=2, parts={"value_model": tiny_scalar_model()})
    with pytest.warns(UserWarning, match="vf_coef has no effect with advantage = group_mean"):
        settings(tmp_path, advantage="group_mean", num_generations=2, vf_coef=0.3)
