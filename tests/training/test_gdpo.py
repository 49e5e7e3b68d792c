"""GDPO: every part of the reward against its group apart, then the weighted sum over the batch; by hand, in float64."""

from dataclasses import replace
from math import sqrt
from statistics import mean, pstdev, stdev

import pytest
import torch

from nearstep import ConfigError, RewardError
from nearstep.algorithm.advantage_rules import GDPO, AgainstGroup, CreditInputs, RewardPart
from nearstep.algorithm.advantages import GROUP_STD_FLOOR
from nearstep.algorithm.statistics import Moments
from nearstep.training.experience import make_experience
from nearstep.training.state import State
from nearstep.types import Scores
from tests.training.runs import play, settings, small_recipe

NAN = float("nan")


def floats(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def inputs(totals, *parts: RewardPart, scored=None) -> CreditInputs:
    """Rows of one action each, in groups of three."""
    rows = len(totals)
    return CreditInputs(
        rewards=floats(*totals), values=torch.zeros(rows, dtype=torch.float64), action_counts=torch.ones(rows).long(),
        final_values=torch.zeros(rows), final_advantages=torch.zeros(rows),
        scored=torch.ones(rows, dtype=torch.bool) if scored is None else torch.tensor(scored), update=1,
        response_length=1, group_size=3, parts=parts,
    )  # fmt: skip


def normal(*values: float) -> list[float]:
    """Less the mean, by the standard deviation and its floor."""
    return [(value - mean(values)) / (stdev(values) + GROUP_STD_FLOOR) for value in values]


def over_the_batch(values: list[float], count: int | None = None) -> list[float]:
    middle, spread = mean(values), stdev(values)
    return [(value - middle) / sqrt(spread**2 + 1e-8) for value in values]


def test_by_hand():
    """Two prompts, two parts; the second weighs 2 and did not apply to one row."""
    right, short = (1.0, 0.0, 0.0, 1.0, 1.0, 1.0), (0.1, 0.2, 0.3, 0.5, NAN, 0.1)
    totals = [one + 2 * (0 if two != two else two) for one, two in zip(right, short, strict=True)]
    given = inputs(totals, RewardPart("right", 1.0, floats(*right)), RewardPart("short", 2.0, floats(*short)))
    ones, twos = [*normal(1, 0, 0), 0, 0, 0], normal(0.1, 0.2, 0.3)
    pair = normal(0.5, 0.1)
    sums = [one + 2 * two for one, two in zip(ones, [*twos, pair[0], 0, pair[1]], strict=True)]
    assert GDPO().credit(given).advantages.tolist() == pytest.approx(over_the_batch(sums))


def test_two_parts_that_sum_to_the_same_do_not_collapse():
    """The paper's point: rewards (1, 0) and (0, 1) have one sum, and yet may deserve different advantages."""
    first, second = floats(1, 0, 0, 1, 0, 0), floats(0, 1, 0, 1, 1, 0)
    given = inputs((first + second).tolist(), RewardPart("a", 1.0, first), RewardPart("b", 1.0, second))
    apart, together = GDPO().credit(given).advantages, AgainstGroup("group_normalized").credit(given).advantages
    assert together[0] == pytest.approx(float(together[1]))
    assert apart[3] > apart[4] > apart[5]
    assert apart[4] - apart[5] != pytest.approx(float(together[4] - together[5]))
    assert apart.mean().item() == pytest.approx(0, abs=1e-12)
    assert apart.std().item() == pytest.approx(1, rel=1e-6)


def test_what_is_no_part_keeps_its_size():
    """Penalties and the KL in the reward are not blown up to the size of a part."""
    part = floats(1, 0, 0, 0, 1, 0)
    penalty = floats(0, -0.01, 0, -0.02, 0, 0)
    given = inputs((part + penalty).tolist(), RewardPart("right", 1.0, part))
    sums = [*normal(1, 0, 0), *normal(0, 1, 0)]
    rest = [0.01 / 3, -0.02 / 3, 0.01 / 3, -0.04 / 3, 0.02 / 3, 0.02 / 3]
    expected = over_the_batch([one + two for one, two in zip(sums, rest, strict=True)])
    assert GDPO().credit(given).advantages.tolist() == pytest.approx(expected)


def test_rows_without_a_score_count_for_nobody():
    values = floats(1, 0, 7, 3, 5, 4)
    part = RewardPart("one", 1.0, values)
    scored = [True, True, False, True, True, True]
    found = GDPO().credit(inputs(values.tolist(), part, scored=scored)).advantages
    sums = [*normal(1, 0), *normal(3, 5, 4)]
    kept = over_the_batch(sums)
    assert found.tolist() == pytest.approx([*kept[:2], 0, *kept[2:]])
    broken = replace(part, values=values.where(torch.tensor(scored), torch.nan))
    again = GDPO().credit(inputs(values.tolist(), broken, scored=scored)).advantages
    torch.testing.assert_close(found, again)


def test_in_a_run_parts_come_with_their_weights(tmp_path):
    def first(completion_ids, **columns):
        return [float(number % 3) for number, _ in enumerate(completion_ids)]

    def second(completion_ids, **columns):
        return [None if number == 5 else float(number % 2) for number, _ in enumerate(completion_ids)]

    recipe = small_recipe(
        tmp_path, parts={"reward_funcs": (first, second)}, advantage="gdpo", num_generations=4, kl_coef=0.0,
        reward_weights=(1.0, 0.25),
    )  # fmt: skip
    assert recipe.models.critic is None
    assert not recipe.whiten_advantages
    _, rollout, scores = play(recipe)
    assert scores.weights == {"first": 1.0, "second": 0.25}
    experience = make_experience(rollout, scores, recipe)
    starts = rollout.action_counts.cumsum(0) - rollout.action_counts
    ones = [*normal(0, 1, 2, 0), *normal(1, 2, 0, 1)]
    twos = normal(0, 0, 1)
    sums = [one + two / 4 for one, two in zip(ones, [*normal(0, 1, 0, 1), twos[0], 0, twos[1], twos[2]], strict=True)]
    assert experience.advantages[starts].tolist() == pytest.approx(over_the_batch(sums), abs=1e-5)
    # Scores from elsewhere say no weights: each part weighs 1.
    plain = make_experience(rollout, Scores(scores.total, scores.parts), recipe)
    assert (plain.advantages - experience.advantages).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"normalize_scores": "scale"}, "normalize_scores"), ({"reward_clip": 1.0}, "reward_clip"),
        ({"non_eos_penalty": True}, "non_eos_penalty"), ({"whiten_rewards": True}, "whiten_rewards"),
    ],
)  # fmt: skip
def test_what_changes_the_sum_is_refused(tmp_path, given, name):
    with pytest.raises(ConfigError, match=f"gdpo normalises every part of the reward apart, and {name} changes"):
        settings(tmp_path, advantage="gdpo", num_generations=4, **given)
    with pytest.raises(ConfigError, match="advantage = gdpo compares responses to one prompt"):
        settings(tmp_path, advantage="gdpo")


def test_every_reward_may_be_scaled_by_its_own_moments(tmp_path):
    """With a critic: values so far 1, 3, then 5, 7; the other reward did not apply to one row."""
    recipe = small_recipe(tmp_path, batch_size=2, normalize_scores="shift_and_scale", normalize_scores_apart=True)
    _, rollout, _ = play(recipe)
    state, found = State(), []
    for one, two in (((1.0, 3.0), (10.0, NAN)), ((5.0, 7.0), (30.0, 50.0))):
        scores = Scores(floats(1, 1), {"one": floats(*one), "two": floats(*two)}, weights={"one": 1.0, "two": 0.5})
        state.begin_update()
        state.update_score_moments(scores, recipe.config, recipe.backend)
        found.append(make_experience(rollout, scores, recipe, state).scores.tolist())
    assert found[0] == pytest.approx([-1 - 0, 1 + 0])  # "two" has one value, which is its own mean
    spread = (pstdev((1, 3, 5, 7)), pstdev((10, 30, 50)))
    assert found[1] == pytest.approx([1 / spread[0] + 0.5 * 0, 3 / spread[0] + 0.5 * 20 / spread[1]])
    assert state.score_moments == Moments()
    state.take_back_unfinished()
    assert state.part_moments["one"].count == 2
    with pytest.raises(RewardError, match="normalize_scores_apart scales what each reward gives to whole rows"):
        make_experience(rollout, replace(scores, dense=torch.zeros_like(rollout.logprobs)), recipe, state)
