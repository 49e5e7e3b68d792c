"""Reward accuracy and RewardBench, on numbers worked out by hand."""

import math

import pytest

from nearstep.evaluation.metrics.figures import Bootstrap, Figure
from nearstep.evaluation.metrics.preferences import (
    TiesPrompt,
    best_of,
    mean_of_subsets,
    reward_accuracy,
    reward_margin,
    ties_figure,
    ties_score,
)

DRAWS = Bootstrap(seed=0, draws=200)


def test_ties_count_half_and_pairs_without_reward_not_at_all():
    chosen, rejected = [2.0, 1.0, 0.0, math.nan], [1.0, 1.0, 5.0, 0.0]
    figure = reward_accuracy(chosen, rejected, [0, 1, 2, 3], DRAWS)
    assert (figure.value, figure.n, figure.left_out) == (0.5, 3, 1)
    assert reward_margin(chosen, rejected, [0, 1, 2, 3], DRAWS).value == pytest.approx(-4 / 3)
    assert reward_accuracy([], [], [], DRAWS).why == "the data holds no preference pairs"


@pytest.mark.parametrize(
    ("correct", "incorrect", "expected"),
    [
        ([3.0], [1.0, 2.0, 0.0], 1.0),
        ([3.0], [3.0, 2.0, 0.0], 1 / 2),
        ([3.0], [3.0, 3.0, 3.0], 1 / 4),
        ([1.0], [3.0, 2.0, 0.0], 0.0),
        ([3.0, 1.0], [3.0], 1 / 2),
        ([3.0], [math.nan, 1.0], None),
    ],
)
def test_best_of_four(correct, incorrect, expected):
    assert best_of(correct, incorrect) == expected


# 4: ref gap 1, tied gap 2 > spread 1: all right; 5: ref gap −1 wrong, tied gap 1 < spread 2.
REF = {"4": TiesPrompt([3.0], [2.0, 1.0]), "5": TiesPrompt([0.0], [1.0])}
TIED = {"4": TiesPrompt([5.0, 4.0], [2.0]), "5": TiesPrompt([4.0, 2.0], [1.0])}
BY_HAND = (
    0.3 * 1.0  # both tied prompts have gap > 0
    + 0.3 * 0.5  # one of two refs
    + 0.2 * 0.5  # gap_tied > spread: 2 > 1, not 1 > 2
    + 0.2 * 0.0  # min(1, 2) = 1 > 1 is false; min(−1, 1) > 2 is false
    + 0.01 * (math.tanh(1 / 1 - 1) + math.tanh(-1 / 2 - 1)) / 2
)


def test_ties_of_rewardbench_2():
    assert ties_score(REF, TIED) == pytest.approx(BY_HAND)
    figure = ties_figure(REF, TIED, DRAWS)
    assert (figure.value, figure.n, figure.prompts) == (pytest.approx(BY_HAND), 4, 2)
    best, worst = ties_score({"4": REF["4"]}, {"4": TIED["4"]}), ties_score({"5": REF["5"]}, {"5": TIED["5"]})
    assert (figure.low, figure.high) == (pytest.approx(worst), pytest.approx(best))


def test_ties_without_spread_or_partner():
    """A spread of 0 leaves the last term out; a tied prompt without its ref counts for its accuracy alone."""
    assert ties_score({"1": TiesPrompt([1.0], [0.0])}, {"1": TiesPrompt([1.0, 1.0], [0.0])}) == pytest.approx(1.0)
    assert ties_score({}, {"1": TiesPrompt([1.0, 1.0], [0.0])}) == pytest.approx(0.3)
    broken = ties_figure({"1": TiesPrompt([math.nan], [0.0])}, {"1": TiesPrompt([1.0, 1.0], [0.0])}, DRAWS)
    assert (broken.value, broken.left_out) == (pytest.approx(0.3), 1)


def test_the_mean_of_subsets_weighs_them_alike():
    figures = [Figure(1.0, 100, 100, 0.9, 1.0, "Wilson"), Figure(0.5, 2, 2, 0.1, 0.9, "Wilson"), Figure.none("empty")]
    whole = mean_of_subsets(figures)
    half = math.hypot(0.05, 0.4) / 2
    assert (whole.value, whole.n) == (0.75, 102)
    assert (whole.low, whole.high) == (pytest.approx(0.75 - half), pytest.approx(0.75 + half))
    assert mean_of_subsets([Figure.none("empty")]).value is None
