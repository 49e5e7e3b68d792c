"""Figures count what they say, and their intervals are over prompts, not over samples."""

import math

import numpy as np
import pytest

from nearstep.common.intervals import wilson
from nearstep.evaluation.metrics.figures import Bootstrap, Figure, mean, ratio, share, statistic

DRAWS = Bootstrap(seed=3, draws=400)


def test_wilson_by_hand():
    """528 of 1000: 0.497 to 0.559 (scipy says the same); none of 5: 0 to z² / (5 + z²)."""
    assert wilson(0.528, 1000) == pytest.approx((0.49702, 0.55876), abs=1e-4)
    assert wilson(0.0, 5) == (0.0, pytest.approx(3.8415 / 8.8415, abs=1e-4))
    assert wilson(1.0, 5) == (pytest.approx(5 / 8.8415, abs=1e-4), 1.0)
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_a_ratio_weighs_rows_by_their_denominators():
    figure = ratio([1.0, 6.0], [1.0, 3.0], [0, 1], DRAWS, after=np.exp)
    assert figure.value == pytest.approx(math.exp(7 / 4))
    assert (figure.n, figure.prompts, figure.interval) == (4, 2, "bootstrap")
    assert math.exp(1) - 1e-9 <= figure.low < figure.value < figure.high <= math.exp(2) + 1e-9


def test_samples_of_one_prompt_are_drawn_together():
    """Eight copies of each of two values: by row the mean would be known four times as well."""
    values, prompts = [0.0] * 8 + [1.0] * 8, [0] * 8 + [1] * 8
    by_prompt = mean(values, prompts, DRAWS)
    assert (by_prompt.value, by_prompt.low, by_prompt.high) == (0.5, 0.0, 1.0)
    by_row = mean(values, list(range(16)), DRAWS)
    assert 0.2 < by_row.low < by_row.high < 0.8


def test_shares_have_wilsons_interval_where_prompts_count_once():
    assert share([1.0, 0.0, 1.0, 0.5], [0, 1, 2, 3], DRAWS).interval == "Wilson"
    assert share([1.0, 0.0, 1.0, 0.5], [0, 1, 2, 2], DRAWS).interval == "bootstrap"
    assert share([1.0, 0.3], [0, 1], DRAWS).interval == "bootstrap"


def test_rows_without_a_value_are_left_out_and_counted():
    figure = mean([1.0, None, 3.0, float("nan")], [0, 1, 2, 3], DRAWS)
    assert (figure.value, figure.n, figure.left_out) == (2.0, 2, 2)
    nothing = mean([None, float("nan")], [0, 1], DRAWS)
    assert (nothing.value, nothing.left_out, nothing.why) == (None, 2, "no row has a value")
    assert mean([], [], DRAWS) == Figure.none("no row has a value")


def test_one_prompt_has_no_interval():
    assert mean([1.0, 2.0], [0, 0], DRAWS) == Figure(1.5, 2, 1)
    assert statistic(np.std, [1.0, 3.0], [0, 0], DRAWS) == Figure(1.0, 2, 1)


def test_the_seed_names_the_draws():
    values, prompts = [0.1, 0.5, 0.7, 0.9], [0, 1, 2, 3]
    assert mean(values, prompts, DRAWS) == mean(values, prompts, Bootstrap(seed=3, draws=400))
    assert mean(values, prompts, DRAWS).low != mean(values, prompts, Bootstrap(seed=4, draws=7)).low


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Of 200 data sets of 60 prompts with mean 0, about 95 % of the intervals hold it; three deviations are 4.6 %."""
    generator = np.random.default_rng(0)
    data = generator.normal(size=(200, 60))
    few = Bootstrap(seed=0, draws=300)
    held = [(figure := mean(list(row), range(60), few)).low <= 0 <= figure.high for row in data]
    assert 0.89 < np.mean(held) < 0.99


def test_any_statistic_draws_whole_prompts():
    figure = statistic(lambda values: float(values.std()), [1.0, 3.0, 5.0, 7.0], [0, 0, 1, 1], DRAWS)
    assert figure.value == pytest.approx(math.sqrt(5))
    assert figure.low == pytest.approx(1.0)  # the first prompt twice
    assert figure.high == pytest.approx(math.sqrt(5))
