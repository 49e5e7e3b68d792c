"""When the critic trains: phases by hand, decoupled with equal settings is joint, skipped and warm-up updates."""

import copy

import pytest
import torch

from nearstep import ConfigError, PPOTrainer
from nearstep.algorithm.trust_regions import BinaryKL, BinaryTV, Clip, TopKKL, TopKTV, Unbounded
from nearstep.assembly.axes import ratio_limit, trust_region
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.schedules import Decoupled, Joint, Phase, WarmUp
from nearstep.training.state import State
from nearstep.training.update import update
from tests.training.runs import learner, learning, play, settings, small_recipe


def test_phases_by_hand():
    joint = Joint(epochs=4)
    assert joint.phases(3) == [Phase(3, 4, policy=True, critic=True)]
    apart = Decoupled(policy_epochs=4, critic_epochs=2, every=3, last_update=7)
    policy, critic = {"policy": True, "critic": False}, {"policy": False, "critic": True}
    assert [len(apart.phases(number)) for number in range(1, 8)] == [1, 1, 2, 1, 1, 2, 2]
    assert apart.phases(6) == [Phase(6, 4, **policy), Phase(6, 2, **critic)]
    warm = WarmUp(joint, updates=2, epochs=5)
    assert warm.phases(2) == [Phase(2, 5, **critic)]
    assert warm.phases(3) == joint.phases(3)


def weights(recipe):
    models = (recipe.models.policy.model, recipe.models.critic.model)
    return [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]


@pytest.mark.slow
def test_decoupled_with_equal_settings_is_joint_4_4(tmp_path):
    """Adam keeps its state by weight, the targets are frozen, and the minibatches are the same."""
    common = {"max_grad_norm": None, "num_mini_batches": 2, "dtype": torch.float64}
    joint = small_recipe(tmp_path / "joint", vf_coef=1.0, **common)
    apart = small_recipe(tmp_path / "apart", critic="decoupled", num_vf_epochs=2, **common)
    train(joint, State())
    train(apart, State())
    for ours, theirs in zip(weights(joint), weights(apart), strict=True):
        assert (ours - theirs).abs().max() <= 1e-12


def test_skipped_updates_leave_the_critic_and_the_last_trains_it(tmp_path):
    recipe = small_recipe(tmp_path, critic="decoupled", vf_update_frequency=2, total_episodes=24)
    moved = []
    for number in (1, 2, 3):
        _, rollout, scores = play(recipe, number)
        before = weights(recipe)[1].clone()
        metrics, _ = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(number), recipe)
        moved.append(bool((weights(recipe)[1] != before).any()))
        assert ("loss/value_avg" in metrics.by_name) == moved[-1]
    assert moved == [False, True, True]


def test_each_network_is_clipped_on_its_own_when_decoupled(tmp_path):
    recipe = small_recipe(
        tmp_path, critic="decoupled", optim="sgd", learning_rate=0.5, vf_learning_rate=0.25, max_grad_norm=1e-3,
        num_ppo_epochs=1, dtype=torch.float64,
    )  # fmt: skip
    _, rollout, scores = play(recipe)
    before = weights(recipe)
    update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    moved = [(after - old).norm().item() for after, old in zip(weights(recipe), before, strict=True)]
    assert moved == pytest.approx([0.5e-3, 0.25e-3], rel=1e-4)


def test_warm_up_moves_the_critic_alone(tmp_path):
    recipe = small_recipe(tmp_path, vf_warmup_updates=1)
    _, rollout, scores = play(recipe)
    before = weights(recipe)
    update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    after = weights(recipe)
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_counters_and_rates(tmp_path):
    recipe = small_recipe(
        tmp_path, critic="decoupled", vf_update_frequency=2, num_vf_epochs=3, vf_learning_rate=0.5, total_episodes=24
    )
    state = State()
    train(recipe, state)
    assert (state.steps.policy, state.steps.critic) == (3 * 2, 2 * 3)
    assert recipe.learners.critic.learning_rate == 0.5


@pytest.mark.parametrize(("given", "expected", "cap"), [
    ({}, Clip(0.2, 0.2), None),
    ({"cliprange": 0.1, "cliprange_high": 0.3}, Clip(0.1, 0.3), None),
    ({"trust_region": "binary_tv"}, BinaryTV(0.15, 0.15), 20.0),
    ({"trust_region": "binary_kl", "ratio_cap": 5.0}, BinaryKL(0.05, 0.05), 5.0),
    ({"trust_region": "topk_tv", "divergence_low": 0.3}, TopKTV(0.3, 0.15, 20), 20.0),
    ({"trust_region": "topk_kl", "divergence_top_k": 7}, TopKKL(0.05, 0.05, 7), 20.0),
    ({"trust_region": "unbounded"}, Unbounded(), None),
])  # fmt: skip
def test_regions_by_name_d30(tmp_path, given, expected, cap):
    config = settings(tmp_path, **given)
    assert trust_region(config) == expected
    assert ratio_limit(config, trust_region(config)) == cap


OWN_REGION = """
import dataclasses
import torch

@dataclasses.dataclass(frozen=True)
class Half:
    top_k: int = 2

    def weight(self, now, old, advantages, rows):
        assert now.top.shape == old.top.shape == (len(advantages), 2)
        assert rows.action_counts.sum() == len(advantages)
        return ((now.sampled - old.sampled).abs() < 0.5).float()
"""


@pytest.mark.slow
def test_a_region_of_ones_own_trains(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_REGION)
    recipe = small_recipe(tmp_path / "out", trust_region=f"{tmp_path}/mine.py:Half")
    before = copy.deepcopy(weights(recipe))
    train(recipe, State())
    assert not torch.equal(weights(recipe)[0], before[0])


def test_what_is_no_region_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("Half = 3\n")
    with pytest.raises(ConfigError, match="needs top_k and weight"):
        small_recipe(tmp_path, trust_region=f"{tmp_path}/mine.py:Half")
    with pytest.raises(ConfigError, match="did you mean binary_tv"):
        small_recipe(tmp_path, trust_region="binary_tvv")


REGIONS, SCHEDULES = ("binary_tv", "binary_kl", "topk_tv", "topk_kl", "unbounded"), ("joint", "decoupled")


@pytest.mark.parametrize(
    ("region", "critic"),
    [  # one pair always, all of them in the slow lane
        pytest.param(region, critic, marks=[] if (region, critic) == ("binary_tv", "decoupled") else pytest.mark.slow)
        for region in REGIONS
        for critic in SCHEDULES
    ],
)
def test_every_region_learns_with_either_schedule(tmp_path, region, critic):
    from tests.trainer.test_trainer import trainer_of

    config = learning(tmp_path, trust_region=region, critic=critic)
    trainer = trainer_of(tmp_path, config=config, model=learner())
    assert isinstance(trainer, PPOTrainer)
    trainer.train()
    assert trainer.recipe.report.reporter.latest["objective/scores"] > 0.95
