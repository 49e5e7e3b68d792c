"""A value for each reward: GAE of each apart, by hand; what the critic learns; runs, files and what is refused."""

import math
from dataclasses import replace

import pytest
import torch

from nearstep import ConfigError, PPOConfig, RewardError
from nearstep.algorithm.advantage_rules import GAE, CreditInputs, RewardPart
from nearstep.algorithm.by_reward import GAEByReward, RewardsHead
from nearstep.algorithm.value_heads import ValueTargets
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.state import State
from nearstep.types import Scores
from tests.checkpoint.saved_runs import assert_same_bits, everything, trainer_of
from tests.lanes import slow
from tests.rewards.light import low_ids
from tests.training.runs import play, settings, small_recipe

NAN = math.nan
BY_REWARD = {"advantage": "gae_by_reward", "reward_weights": (1.0, 2.0)}


def floats(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def even(completion_ids, **columns):
    """Of row 5 nothing."""
    return [None if number == 5 else float(sum(ids) % 2) for number, ids in enumerate(completion_ids)]


def recipe_of(folder, **changes):
    return small_recipe(folder, parts={"reward_funcs": (low_ids, even)}, **BY_REWARD | changes)


def test_advantages_and_targets_by_hand():
    """Rows of two and of one action; a penalty of 0.1 at the end of the second, where one reward did not apply."""
    columns = floats(0.5, 0.1, 0, 0.25, 0.4, 0.1, 0.5, 0.3, 0.2).reshape(3, 3)
    inputs = CreditInputs(
        rewards=floats(0, 1 + 2 * 0.5, -0.1),
        values=columns @ floats(1, 2, 1),
        action_counts=torch.tensor([2, 1]),
        final_values=floats(0, 0),
        final_advantages=floats(0, 0),
        scored=torch.tensor([True, True]),
        update=1,
        response_length=2,
        parts=(RewardPart("one", 1.0, floats(1, 0)), RewardPart("two", 2.0, floats(0.5, NAN))),
        value_columns=columns,
        final_value_columns=torch.zeros(2, 3, dtype=torch.float64),
    )
    credit = GAEByReward(GAE(1.0, 1.0)).credit(inputs)
    # one: 0.5, 0.75, −0.5, whose mean is 0.25 and variance 0.875 / 3; two: 0.4, 0.1; the rest: 0, −0.1, −0.3.
    std = math.sqrt(0.875 / 3)
    expected = [0.25 / std + 2 * 1 + 0, 0.5 / std - 2 * 1 - 0.1, -0.75 / std + 0 - 0.3]
    assert credit.advantages.tolist() == pytest.approx(expected)
    assert credit.target_columns.T.tolist() == [
        pytest.approx([1, 1, 0]), pytest.approx([0.5, 0.5, 0.3]), pytest.approx([0, 0, -0.1]),
    ]  # fmt: skip
    assert credit.targets.tolist() == pytest.approx([1 + 1 + 0, 1 + 1 + 0, 0 + 0.6 - 0.1])
    # A reward of another size has the same part in it.
    larger = (RewardPart("one", 1.0, floats(10, 0)), inputs.parts[1])
    scaled = replace(
        inputs, parts=larger, rewards=inputs.rewards + floats(0, 9, 0), value_columns=columns * floats(10, 1, 1)
    )
    torch.testing.assert_close(GAEByReward(GAE(1.0, 1.0)).credit(scaled).advantages, credit.advantages)
    # The λ of targets is the rule's own.
    apart = GAEByReward(GAE(1.0, 1.0, lam_critic=0.0)).credit(inputs)
    torch.testing.assert_close(apart.advantages, credit.advantages)
    assert apart.target_columns[0].tolist() == pytest.approx([0.25, 0.4, 0.1])  # the next state's values
    with pytest.raises(ValueError, match="needs a value for each of 2 rewards and one for the rest, and"):
        GAEByReward().credit(replace(inputs, value_columns=None))


def test_the_head_by_hand():
    head, outputs = RewardsHead((1.0, 2.0)), floats(1, 2, 3, 0, 1, 0).reshape(2, 3).requires_grad_()
    assert head.outputs == 3
    assert head.values(outputs).tolist() == [8, 2]
    learned = ValueTargets(floats(0, 0), floats(0, 0), torch.tensor([0, 0]), floats(0, 2, 1, 0, 0, 0).reshape(2, 3))
    loss = head.loss(outputs, learned)
    assert loss.tolist() == [(1 + 0 + 4) / 2, 0.5]
    loss.sum().backward()
    assert outputs.grad.tolist() == [[1, 0, 2], [0, 1, 0]]
    with pytest.raises(ValueError, match="goes with advantage = gae_by_reward"):
        head.loss(outputs, replace(learned, columns=None))


def test_in_a_run_each_column_learns_its_own_reward(tmp_path):
    recipe = recipe_of(
        tmp_path, total_episodes=24, kl_coef=0.1, missing_eos_penalty=0.5, gate="value_gap", gate_low=0.0
    )
    assert recipe.models.critic.head.out_features == 3
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    columns, names = experience.by_reward, ("low_ids", "even")
    assert columns.names == names
    # The critic is 0 everywhere, so targets with λ below 1 are discounted sums; with λ = 1 they are the rewards.
    last = rollout.action_counts.cumsum(0) - 1
    for number, name in enumerate(names):
        given = scores.parts[name].nan_to_num(nan=0.0)
        torch.testing.assert_close(columns.returns[last, number], given.to(columns.returns.dtype))
    torch.testing.assert_close(
        columns.returns[:, 0] + 2 * columns.returns[:, 1] + columns.returns[:, 2], experience.returns
    )
    assert experience.select(torch.tensor([3])).by_reward.values.shape == (int(rollout.action_counts[3]), 3)
    with recipe.report.reporter as reporter:
        train(recipe, State())
        logged = reporter.history[-1]
    assert logged["reward/low_ids_explained"] < 1
    assert logged["reward/even_explained"] < 1
    assert bool((recipe.models.critic.head.weight.abs().sum(1) > 0).all())


def test_parts_in_another_order_are_known_by_their_weights(tmp_path):
    """Files of rollouts have them by the alphabet."""
    recipe = recipe_of(tmp_path)
    _, rollout, scores = play(recipe)
    turned = Scores(scores.total, dict(reversed(scores.parts.items())), weights=scores.weights)
    one, other = (make_experience(rollout, each, recipe) for each in (scores, turned))
    assert torch.equal(one.by_reward.returns, other.by_reward.returns)
    assert torch.equal(one.advantages, other.advantages)
    with pytest.raises(RewardError, match="looks only at the sum of a row"):
        make_experience(rollout, replace(scores, dense=torch.zeros_like(rollout.logprobs)), recipe)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"value_head": "quantile"}, "value_head and advantage = gae_by_reward: the critic has a head of its own"),
        ({"critic_models": 2, "num_generations": 2}, "critic_models and advantage = gae_by_reward: one critic"),
        ({"score_position": "after_eos"}, "rewards stand on the last token"),
        ({"baseline_fallback": "batch_mean"}, "it belongs to advantage = gae"),
        (
            {"normalize_scores": "scale"},
            "gae_by_reward normalises every part of the reward apart, and normalize",
        ),
        ({"whiten_rewards": True}, "whiten_rewards changes their sum"),
    ],
)
def test_what_clashes_is_refused(given, said):
    with pytest.raises(ConfigError) as refused:
        PPOConfig(advantage="gae_by_reward", **given)
    assert said in str(refused.value)


def test_one_reward_needs_no_columns(tmp_path):
    with pytest.raises(ConfigError, match="is for several rewards, and the run has one: use advantage = gae"):
        small_recipe(tmp_path, advantage="gae_by_reward")
    with pytest.warns(UserWarning, match="cliprange_value has no effect with advantage = gae_by_reward"):
        settings(tmp_path, advantage="gae_by_reward", cliprange_value=0.5)


@pytest.mark.parametrize("trunk", [slow("separate"), slow("shared")])
def test_it_goes_on_with_the_same_bits(tmp_path, trunk):
    changed = BY_REWARD | {"total_episodes": 16, "critic_trunk": trunk, "given": {"reward_funcs": (low_ids, even)}}
    unbroken = trainer_of(tmp_path, **changed)
    unbroken.train()
    expected = everything(unbroken)
    resumed = trainer_of(tmp_path, **changed)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert_same_bits(everything(resumed), expected)
