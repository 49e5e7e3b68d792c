"""Losses of reward models: values worked out by hand, gradients, and what margins, smoothing and ties do."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.preferences import centring_loss, preference_loss, squared_error


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def loss(chosen, rejected, *, preference=1.0, margin=0.0, smoothing=0.0):
    found = preference_loss(
        tensor(chosen), tensor(rejected), preferences=tensor(preference), margins=tensor(margin),
        label_smoothing=smoothing,
    )  # fmt: skip
    return found.item()


@pytest.mark.parametrize(
    ("chosen", "rejected", "more", "expected"),
    [
        (0, 0, {}, 0.693147181),  # log 2
        (2, 1, {}, 0.313261688),  # log(1 + 1/e)
        (1, 2, {}, 1.313261688),
        (2, 1, {"margin": 1.0}, 0.693147181),
        (2, 1, {"margin": 3.0}, 2.126928011),  # log(1 + e²)
        (2, 1, {"smoothing": 0.1}, 0.413261688),  # 0.9 · 0.313… + 0.1 · 1.313…
        (2, 1, {"preference": 0.5}, 0.813261688),  # ½ · 0.313… + ½ · 1.313…
        (2, 1, {"preference": 0.5, "smoothing": 0.3}, 0.813261688),  # a tie is as smooth as can be
        (2, 1, {"preference": 0.0}, 1.313261688),
        (800, 0, {}, 0.0),
        (0, 800, {}, 800.0),  # no overflow
    ],
)
def test_preference_loss(chosen, rejected, more, expected):
    assert loss(chosen, rejected, **more) == pytest.approx(expected, abs=1e-9)


@given(st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 0.49), st.floats(0, 2))
def test_swapping_the_pair_and_its_preference_changes_nothing_without_margin(a, b, preference, smoothing, shift):
    one = loss(a, b, preference=preference, smoothing=smoothing)
    assert loss(b, a, preference=1 - preference, smoothing=smoothing) == pytest.approx(one, abs=1e-12)
    assert loss(a + shift, b + shift, preference=preference, smoothing=smoothing) == pytest.approx(one, abs=1e-9)


def test_gradient_is_what_the_probability_lacks():
    chosen, rejected = tensor(1.5).requires_grad_(), tensor(0.5).requires_grad_()
    preference_loss(chosen, rejected, preferences=tensor(1.0), margins=tensor(0.0)).sum().backward()
    lacking = 1 - 1 / (1 + math.exp(-1))
    assert (chosen.grad.item(), rejected.grad.item()) == pytest.approx((-lacking, lacking))


def test_half_precision_is_widened():
    half = torch.tensor([1.0], dtype=torch.bfloat16)
    found = preference_loss(half, half * 0, preferences=torch.ones(1), margins=torch.zeros(1))
    assert found.dtype == torch.float32


def test_centring_and_squared_error():
    assert centring_loss(tensor(2, -1), tensor(1, 1)).tolist() == [9, 0]
    assert squared_error(tensor(2, -1), tensor(1, 1)).tolist() == [1, 4]
