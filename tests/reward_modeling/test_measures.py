"""Accuracy, calibration, correlation and error: numbers worked out by hand."""

import math

import pytest
import torch

from nearstep.common.intervals import wilson
from nearstep.reward_modeling.measures import correlation, grade_measures, pair_measures, ranks


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def measured(chosen, rejected, preferences=None, margins=None, **options):
    preferences, margins = preferences or [1.0] * len(chosen), margins or [0.0] * len(chosen)
    return pair_measures(tensor(*chosen), tensor(*rejected), tensor(*preferences), tensor(*margins), **options)


def test_accuracy_counts_ties_of_rewards_one_half():
    found = measured([1, 0, 2, 5], [0, 1, 2, 1])
    assert (found.pairs, found.ties, found.accuracy) == (4, 0, 0.625)
    assert (found.mean_chosen, found.mean_rejected, found.mean_gap) == (2, 1, 1)


def test_pairs_without_a_better_text_count_for_the_log_loss_alone():
    found = measured([1, 0], [0, 0], [1.0, 0.5])
    assert (found.pairs, found.ties, found.accuracy) == (1, 1, 1.0)
    assert found.log_loss == pytest.approx((math.log(1 + math.exp(-1)) + math.log(2)) / 2)


def test_a_preference_below_one_half_turns_the_pair_round():
    found = measured([0, 0], [3, 3], [0.0, 1.0])
    assert found.accuracy == 0.5
    assert found.mean_gap == 0


def test_only_ties_have_no_accuracy():
    found = measured([1.0], [0.0], [0.5])
    assert math.isnan(found.accuracy)
    assert found.by_reward_gap == ()


def test_extreme_gaps_have_a_finite_loss():
    assert measured([2000.0], [-2000.0]).log_loss == 0
    assert measured([-2000.0], [2000.0]).log_loss == 4000


def test_bands_hold_accuracy_and_promise():
    # Four pairs with a gap of 1, three of them right; four with a gap of 3, all right.
    found = measured([1, 1, 1, 0, 3, 3, 3, 3], [0, 0, 0, 1, 0, 0, 0, 0], bands=2)
    low, high = found.by_reward_gap
    assert (low.pairs, low.accuracy, low.low) == (4, 0.75, 1)
    assert (high.pairs, high.accuracy, high.high) == (4, 1.0, 3)
    promised = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    assert (low.predicted, high.predicted) == pytest.approx(promised)
    assert found.calibration_error == pytest.approx((abs(0.75 - promised[0]) + (1 - promised[1])) / 2)
    assert found.by_label_gap == ()


def test_bands_by_label_gap_where_the_data_has_margins():
    found = measured([1, 0, 1, 1], [0, 1, 0, 0], margins=[1, 1, 2, 2], bands=2)
    assert [(band.pairs, band.accuracy) for band in found.by_label_gap] == [(2, 0.5), (2, 1.0)]


def test_gaps_of_rewards_are_correlated_with_those_of_labels():
    # Gaps 1, 2, 6 and margins 1, 2, 3: deviations (−2, −1, 3) and (−1, 0, 1).
    found = measured([1, 2, 6, 9], [0, 0, 0, 0], [1.0, 1.0, 1.0, 0.5], margins=[1, 2, 3, 0])
    assert found.gap_correlation == pytest.approx(5 / math.sqrt(14 * 2))
    assert math.isnan(measured([1, 2], [0, 0]).gap_correlation)
    assert math.isnan(measured([1.0], [0.0], [0.5]).gap_correlation)


def test_equal_gaps_make_one_band():
    (band,) = measured([1, 1], [0, 0]).by_reward_gap
    assert (band.pairs, band.low, band.high) == (2, 1, 1)


def test_few_pairs_make_few_bands():
    gaps = [float(number) for number in range(1, 61)]
    assert [len(measured(gaps[:count], [0.0] * count).by_reward_gap) for count in (10, 40, 60)] == [1, 2, 3]


def test_wilson():
    low, high = wilson(528 / 1000, 1000)
    assert (low, high) == pytest.approx((0.497, 0.559), abs=5e-4)
    assert wilson(0.5, 0) == (0, 1)


def test_grades():
    found = grade_measures(tensor(1, 2, 3, 10), tensor(2, 4, 6, 8))
    assert found.mean_squared_error == (1 + 4 + 9 + 4) / 4
    assert found.mean_absolute_error == 2
    assert found.spearman == pytest.approx(1)
    assert found.pair_accuracy == 1
    assert found.pearson == pytest.approx(28 / math.sqrt(50 * 20))
    # errors −1, −2, −3, 2: variance 3.5; targets: variance 5
    assert found.explained_variance == pytest.approx(1 - 3.5 / 5)


def test_grades_of_one_value_have_no_correlation():
    found = grade_measures(tensor(1, 2), tensor(3, 3))
    assert math.isnan(found.pearson)
    assert math.isnan(found.explained_variance)
    assert math.isnan(found.pair_accuracy)


def test_ranks_share_ties():
    assert ranks(tensor(10, 20, 10, 5)).tolist() == [2.5, 4, 2.5, 1]


def test_correlation_is_scale_free_and_signed():
    a = tensor(1, 2, 4)
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert correlation(a, -a) == pytest.approx(-1)
