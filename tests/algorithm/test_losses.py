"""Losses: golden values, gradients against autograd through PPO's own objective, and what a mask does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.losses import clipped_surrogate, policy_loss, probability_ratio, value_loss
from nearstep.algorithm.trust_regions import Clip, TokenLogprobs
from tests.regions import weight


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"), [(1, 1.5, -1.2), (1, 0.5, -0.5), (-1, 1.5, 1.5), (-1, 0.5, 0.8), (-1, 5, 5)]
)
def test_policy_loss_golden_10_4(advantage, ratio, loss):
    found = clipped_surrogate(tensor(ratio), tensor(advantage), low=0.2, high=0.2)
    assert found.item() == pytest.approx(loss, abs=1e-12)


def test_dual_clip_bounds_the_loss_of_bad_tokens_10_4():
    found = clipped_surrogate(tensor(5, 1.5, 5), tensor(-1, -1, 1), low=0.2, high=0.2, dual=3.0)
    assert found.tolist() == pytest.approx([3, 1.5, -1.2])
    now, old = TokenLogprobs(tensor(5, 1.5).log()), TokenLogprobs(tensor(1, 1).log())
    assert weight(Clip(0.2, 0.2, dual=3.0), now, old, tensor(-1, -1)).tolist() == [0, 1]


def test_dual_clip_leaves_tokens_that_are_not_bad_alone():
    ratio = tensor(2.5, 2.5, 2.5)
    now, old = TokenLogprobs(ratio.log()), TokenLogprobs(tensor(1, 1, 1).log())
    assert weight(Clip(0.2, 3.0, dual=2.0), now, old, tensor(-0.5, 0, 0.5)).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"), [(1.5, 1, 2, 0.32), (0.5, 1, 2, 1.125), (1.1, 1, 2, 0.405), (1.5, 1, 1.1, 0.08)]
)
def test_value_loss_golden_10_3(value, old, target, loss):
    assert value_loss(tensor(value), tensor(old), tensor(target), cliprange=0.2).item() == pytest.approx(loss)


numbers = st.lists(st.tuples(st.floats(-3, 0), st.floats(-3, 0), st.floats(-2, 2)), min_size=1, max_size=8)


def off_the_edges(ratio, low, high):
    return bool((((ratio - 1 - high).abs() > 1e-9) & ((ratio - 1 + low).abs() > 1e-9)).all())


@given(numbers, st.floats(0.05, 0.5), st.floats(0.05, 0.5))
def test_mask_has_the_gradient_of_ppo_clip_10_9(rows, low, high):
    now, old, advantages = tensor(*[r[0] for r in rows]), tensor(*[r[1] for r in rows]), tensor(*[r[2] for r in rows])
    if not off_the_edges(probability_ratio(now, old), low, high):
        return
    one = now.clone().requires_grad_()
    clipped_surrogate(probability_ratio(one, old), advantages, low=low, high=high).sum().backward()
    two = now.clone().requires_grad_()
    mask = weight(Clip(low, high), TokenLogprobs(now), TokenLogprobs(old), advantages)
    policy_loss(two, old, advantages, mask).sum().backward()
    torch.testing.assert_close(two.grad, one.grad, atol=1e-12, rtol=1e-12)


@given(numbers)
def test_without_a_mask_the_gradient_is_that_of_minus_a_r(rows):
    now, old, advantages = tensor(*[r[0] for r in rows]), tensor(*[r[1] for r in rows]), tensor(*[r[2] for r in rows])
    two = now.clone().requires_grad_()
    policy_loss(two, old, advantages, tensor(*[1.0] * len(rows))).sum().backward()
    torch.testing.assert_close(two.grad, -advantages * (now - old).exp(), atol=1e-12, rtol=1e-12)


def test_a_weight_scales_the_gradient_and_leaves_the_value():
    """−A·r·w at A = 2, r = e^(1 − 0.5): w of 0.5, 0 and −1 by hand."""
    now = tensor(1, 1, 1).requires_grad_()
    loss = policy_loss(now, tensor(0.5, 0.5, 0.5), tensor(2, 2, 2), tensor(0.5, 0, -1))
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-3.2974425414] * 3)
    assert now.grad.tolist() == pytest.approx([-1.6487212707, 0, 3.2974425414])


def test_a_step_down_the_policy_loss_raises_good_actions_and_lowers_bad_ones():
    logprobs = tensor(-1.0, -1.0).requires_grad_()
    policy_loss(logprobs, tensor(-1.0, -1.0), tensor(1.0, -1.0), tensor(1, 1)).sum().backward()
    assert logprobs.grad[0] < 0 < logprobs.grad[1]


def test_clip_keeps_what_moves_back():
    old = TokenLogprobs(tensor(0, 0, 0, 0))
    now = TokenLogprobs(tensor(1.5, 1.5, 0.5, 0.5).log())
    assert weight(Clip(0.2, 0.2), now, old, tensor(1, -1, 1, -1)).tolist() == [0, 1, 1, 0]


def test_value_gradient_points_from_value_to_return():
    values = tensor(0.0, 3.0).requires_grad_()
    value_loss(values, tensor(0.0, 3.0), tensor(1.0, 1.0), cliprange=0.2).sum().backward()
    assert values.grad.tolist() == [-1.0, 2.0]


def test_value_loss_gradcheck_in_float64():
    torch.manual_seed(0)
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    old, returns = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, cliprange=0.2).sum(), values)


def test_extreme_log_ratios_stay_finite():
    logprobs = torch.tensor([0.0, -500.0], requires_grad=True)
    loss = policy_loss(logprobs, torch.tensor([-500.0, 0.0]), torch.tensor([-1.0, 1.0]), torch.ones(2))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logprobs.grad.isfinite().all()


def test_empty_batches_give_zero_d14():
    empty = torch.zeros(0, requires_grad=True)
    loss = policy_loss(empty, torch.zeros(0), torch.zeros(0), torch.zeros(0)).sum()
    loss.backward()
    assert loss == 0
    assert value_loss(torch.zeros(0), torch.zeros(0), torch.zeros(0), cliprange=0.2).sum() == 0


def test_half_precision_is_computed_in_float32():
    half = torch.full((2,), -1.0, dtype=torch.bfloat16)
    assert policy_loss(half, half, torch.ones(2), torch.ones(2)).dtype == torch.float32
    assert value_loss(half, half, half, cliprange=0.2).dtype == torch.float32
