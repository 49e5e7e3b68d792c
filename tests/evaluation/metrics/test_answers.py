"""pass@k, maj@n, win rates, diversity: numbers worked out by hand."""

import math

import numpy as np
import pytest

from nearstep.evaluation.metrics import likelihood, texts
from nearstep.evaluation.metrics.figures import Bootstrap
from nearstep.evaluation.metrics.right_answers import accuracy, majority, majority_result, pass_at_k, pass_probability
from nearstep.evaluation.metrics.wins import LengthModel, length_controlled_win_rate, win_rate, win_result

DRAWS = Bootstrap(seed=0, draws=100)


def test_pass_at_k_is_unbiased():
    """Two of four right, k = 2: 1 − C(2,2)/C(4,2) = 5/6; more wrong ones than n − k can hold: 1."""
    assert pass_probability(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_probability(4, 3, 2) == 1.0
    assert pass_probability(4, 0, 4) == 0.0
    right = [True, True, False, False, False, False, False, False]
    figure = pass_at_k(right, [0] * 4 + [1] * 4, 2, DRAWS)
    assert (figure.value, figure.n) == (pytest.approx(5 / 12), 2)
    few = pass_at_k([*right, True], [0] * 4 + [1] * 4 + [2], 2, DRAWS)
    assert (few.value, few.n, few.left_out) == (pytest.approx(5 / 12), 2, 1)
    assert pass_at_k([None, None], [0, 0], 1, DRAWS).value is None
    assert pass_at_k([True], [0], 3, DRAWS).why == "no prompt has 3 answers"


def test_accuracy_is_over_rows_and_its_interval_over_prompts():
    figure = accuracy([True, True, True, False], [0, 0, 0, 1], DRAWS)
    assert (figure.value, figure.n, figure.prompts, figure.interval) == (0.75, 4, 2, "bootstrap")


def test_the_majority_votes():
    assert majority_result(["a", "b", "a"], [True, False, True]) == 1.0
    assert majority_result(["a", "b", "b"], [True, False, False]) == 0.0
    assert majority_result(["a", "b"], [True, False]) == 0.5
    assert majority_result([None, None, "b"], [False, False, True]) == 1.0
    assert majority_result([None, None], [False, False]) == 0.0
    figure = majority([True, False, False, True], ["x", "y", "y", "z"], [0, 0, 0, 1], DRAWS)
    assert (figure.value, figure.n) == (0.5, 2)


def test_wins_and_ties():
    assert [win_result(2.0, 1.0), win_result(1.0, 1.0), win_result(0.0, 1.0), win_result(math.nan, 1.0)] == [
        1.0, 0.5, 0.0, None,
    ]  # fmt: skip
    assert win_rate([1.0, 0.5, 0.0, None], range(4), DRAWS).value == 0.5
    assert win_rate([None], [0], DRAWS).why == "no completion has an answer beside it"


def test_length_controlled_win_rate_by_hand():
    """No differences in length: the plain rate. Else θ and φ are where the ridged likelihood's slope is 0."""
    won = np.array([1.0, 1.0, 0.0])
    assert LengthModel.fit(won, np.zeros(3)).rate == pytest.approx(2 / 3)
    more = np.array([30.0, 10.0, -5.0, -20.0, 15.0])
    won = np.array([1.0, 1.0, 0.0, 0.5, 0.0])
    model = LengthModel.fit(won, more)
    term = np.tanh(more / more.std())
    theta = math.log(model.rate / (1 - model.rate))
    chance = 1 / (1 + np.exp(-(theta + model.length_effect * term)))
    assert (won - chance).sum() == pytest.approx(0, abs=1e-8)
    assert ((won - chance) * term).sum() == pytest.approx(model.length_effect, abs=1e-8)
    assert model.length_effect > 0
    assert model.rate < 0.5  # it wins by length alone: plain rate 0.5


def test_one_step_of_newton_by_hand():
    """One longer win and one shorter loss: by symmetry θ = 0, and φ solves tanh(1)·(1 − 2σ(−φ·tanh 1))… = φ."""
    model = LengthModel.fit(np.array([1.0, 0.0]), np.array([7.0, -7.0]))
    assert model.rate == pytest.approx(0.5)
    t, phi = math.tanh(1.0), model.length_effect
    assert 2 * t * (1 - 1 / (1 + math.exp(-phi * t))) == pytest.approx(phi)


def test_length_control_where_one_side_always_wins():
    figure = length_controlled_win_rate([1.0] * 4, [1, 2, 3, 4], range(4), DRAWS)
    assert (figure.value, figure.interval) == (1.0, "Wilson")
    assert figure.low < 0.6
    assert length_controlled_win_rate([0.0, 0.0], [5, -5], [0, 1], DRAWS).value == 0.0
    assert length_controlled_win_rate([0.5, 0.5], [5, -5], [0, 1], DRAWS).value == pytest.approx(0.5)
    assert length_controlled_win_rate([None], [5], [0], DRAWS).value is None


def test_length_control_of_a_separable_table():
    """Every longer answer wins: θ stays where it is, the ridge holds φ."""
    more = np.array([50.0, 40.0, -30.0, -60.0])
    model = LengthModel.fit(np.array([1.0, 1.0, 0.0, 0.0]), more)
    assert model.rate == pytest.approx(0.5, abs=0.05)
    assert 0 < model.length_effect < 3


def test_perplexity_weighs_tokens_and_bits_count_bytes():
    """Two answers of 1 and 3 tokens: exp(4·ln 2 / 4) = 2; é has two bytes."""
    nll = [math.log(2), 3 * math.log(2)]
    assert likelihood.perplexity(nll, [1, 3], [0, 1], DRAWS).value == pytest.approx(2.0)
    assert likelihood.perplexity(nll, [1, 3], [0, 1], DRAWS).n == 4
    figure = likelihood.bits_per_byte(nll, ["é", "abcdef"], [0, 1], DRAWS)
    assert (figure.value, figure.n) == (pytest.approx(4 / 8), 8)
    assert likelihood.bits_per_byte([0.0], [""], [0], DRAWS).value is None


def test_distinct_words_and_their_jackknife():
    """a b | a c | a: 3 of 5; without each: 2/3, 2/3, 3/4."""
    figure = texts.distinct(["a b", "a c", "a"], [0, 1, 2], 1)
    left = [2 / 3, 2 / 3, 3 / 4]
    error = math.sqrt(2 / 3 * sum((each - np.mean(left)) ** 2 for each in left))
    assert figure.value == pytest.approx(3 / 5)
    assert figure.low == pytest.approx(3 / 5 - 1.959964 * error)
    assert texts.distinct(["a b", "a b"], [0, 0], 2).value == pytest.approx(1 / 2)
    assert texts.distinct(["a", ""], [0, 1], 2).why == "no text has 2 words"


def test_repetition_and_self_bleu():
    assert texts.repetition("a b c a b c") == pytest.approx(1 / 4)
    assert texts.repetition("") == 0.0
    alike = texts.self_bleu(
        ["one two three four five"] * 2 + ["something else entirely written here"], [0, 0, 1], DRAWS
    )
    assert (alike.value, alike.left_out) == (pytest.approx(1.0), 1)
    apart = texts.self_bleu(["one two three four five", "six seven eight nine ten"], [0, 1], DRAWS)
    assert apart.value < 0.1
    assert texts.self_bleu(["alone"], [0], DRAWS).why == "there are no two texts to compare"
