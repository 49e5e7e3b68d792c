"""KL estimators, whitening, stop rules: golden values and edge cases."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.kl import kl_estimate
from nearstep.algorithm.shaping import add_scores, score_after_stop_rules
from nearstep.algorithm.statistics import whiten


@pytest.mark.parametrize(
    ("log_ratio", "estimator", "expected"),
    [
        (0.1, "k1", -0.1), (0.1, "k2", 0.005), (0.1, "k3", 0.0051709),
        (-0.1, "k1", 0.1), (-0.1, "k2", 0.005), (-0.1, "k3", 0.0048374),
        (1.0, "k1", -1.0), (1.0, "k2", 0.5), (1.0, "k3", 0.7182818),
        (1.0, "abs", 1.0), (-0.1, "abs", 0.1),
    ],
)  # fmt: skip
def test_kl_golden_10_5(log_ratio, estimator, expected):
    zero = torch.zeros(1, dtype=torch.float64)
    assert kl_estimate(zero, zero + log_ratio, estimator).item() == pytest.approx(expected, abs=1e-7)


@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k3_is_never_negative_and_finite(now, ref):
    assert 0 <= kl_estimate(torch.tensor([now]), torch.tensor([ref]), "k3").item() < float("inf")


@pytest.mark.parametrize(
    ("unbiased", "shift", "expected"),
    [
        (True, True, [-0.872872, -0.218218, 1.091089]),
        (False, True, [-1.069045, -0.267261, 1.336306]),
        (True, False, [1.460462, 2.115115, 3.424423]),
    ],
)
def test_whitening_golden_10_2(unbiased, shift, expected):
    found = whiten(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64), shift_mean=shift, unbiased=unbiased)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("values", [[], [3.0], [2.0] * 5, [1e6] * 4])
def test_whitening_stays_finite_d14_d35(values):
    found = whiten(torch.tensor(values))
    assert found.isfinite().all()
    assert found.abs().sum() < 1e-3


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=12), st.integers(1, 3))
def test_whitening_over_processes_is_whitening_of_all_d12(numbers, cut):
    """Two processes, played one after the other: each asks for sums, and is told those of both."""
    values = torch.tensor(numbers, dtype=torch.float64)
    shards = [values[:cut], values[cut:]]
    everywhere = torch.stack([torch.tensor(float(len(values)), dtype=torch.float64), values.sum()])
    mean = values.mean()
    sums = [everywhere, (values - mean).square().sum()]
    found = []
    for shard in shards:
        answers = iter(sums)
        found.append(whiten(shard, add_up=lambda _, answers=answers: next(answers)))
    torch.testing.assert_close(torch.cat(found), whiten(values), atol=1e-9, rtol=1e-9)


def test_stop_rules_differ():
    scores, finished = torch.tensor([2.0, 3.0]), torch.tensor([True, False])
    assert score_after_stop_rules(scores, finished).tolist() == [2.0, 3.0]
    assert score_after_stop_rules(scores, finished, missing_eos_penalty=1.5).tolist() == [2.0, 1.5]
    assert score_after_stop_rules(scores, finished, replacement=-1.0).tolist() == [2.0, -1.0]


def test_kl_is_a_penalty_and_the_score_lands_on_the_last_action():
    rewards = add_scores(
        -0.1 * torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0]), torch.tensor([2, 1]),
        at_last=torch.tensor([True, False]),
    )  # fmt: skip
    assert rewards.tolist() == pytest.approx([-0.1, 9.8, -0.3])


def test_one_single_value_becomes_0_and_stays_finite():
    assert whiten(torch.tensor([3.0])).tolist() == [0.0]
    alone = torch.tensor([3.0, 9.0])
    assert whiten(alone, counted=torch.tensor([True, False])).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([3.0]), shift_mean=False).tolist() == [3.0]
