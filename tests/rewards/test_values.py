"""R19 of the reliability scoreboard: each thing that a reward may return is converted as documented or refused."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.common.errors import RewardError
from nearstep.rewards.values import LARGEST_REWARD, read_values
from tests.rewards.episodes import scored

COMPLETIONS = ["first", "second", "third"]


def read(values):
    return read_values(values, scored(COMPLETIONS), "my_reward")


@pytest.mark.parametrize(
    "bad",
    [
        math.nan,
        math.inf,
        -math.inf,
        "1",
        1j,
        1e30,
        -1e13,
        10**400,
        [1.0],
        {"score": 1.0},
        {},
        pytest.param(object(), id="object"),
        np.str_("1"),
    ],
    ids=repr,
)
def test_a_value_that_is_no_reward_is_an_error_naming_function_row_and_value(bad):
    with pytest.raises(RewardError) as raised:
        read([0.0, bad, 0.0])
    message = str(raised.value)
    assert "'my_reward'" in message
    assert "row 1 of the batch (episode 101)" in message
    assert "'second'" in message
    assert repr(bad).split(" at 0x")[0][:100] in message  # where it lies in memory helps nobody


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_not_finite_is_answered_with_what_to_return_instead(bad):
    with pytest.raises(RewardError, match=r"must be finite\. Return None where the reward does not apply"):
        read([0.0, 0.0, bad])


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ([1.0, 2.0], "2 values for 3 completions"),
        ([1.0] * 4, "4 values for 3 completions"),
        ([], "0 values for 3 completions"),
        (torch.zeros(3, 1), "shape [3, 1]"),
        (torch.tensor(1.0), "shape []"),
        (torch.zeros(2), "2 values for 3 completions"),
        (np.zeros((1, 3)), "shape [1, 3]"),
        pytest.param((value for value in [1.0, 2.0, 3.0]), "a generator", id="generator"),
        ({"score": [1.0, 2.0, 3.0]}, "a dict"),
        ("123", "a str: '123'"),
        (1.0, "a float: 1.0"),
        (None, "a NoneType"),
    ],
    ids=str,
)
def test_a_return_value_that_is_no_row_of_rewards_is_an_error_naming_function_and_value(bad, named):
    with pytest.raises(RewardError) as raised:
        read(bad)
    assert "'my_reward'" in str(raised.value)
    assert named in str(raised.value)


@pytest.mark.parametrize(
    "values",
    [
        [1, 0, 1],
        [True, False, True],
        (1.0, 0.0, 1.0),
        [np.float32(1), np.int64(0), np.bool_(True)],
        [torch.tensor(1.0), torch.tensor(0), torch.tensor(True)],
        [torch.tensor([1.0]), np.array([0.0]), Fraction(1)],
        torch.tensor([1.0, 0.0, 1.0], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([True, False, True]),
        np.array([1.0, 0.0, 1.0], dtype=np.float16),
        np.array([1, False, 1.0], dtype=object),
    ],
    ids=repr,
)
def test_numbers_of_every_kind_are_taken(values):
    assert read(values) == [1.0, 0.0, 1.0]


def test_none_becomes_nan_and_nothing_else_does():
    assert np.array_equal(read([None, 2.0, None]), [math.nan, 2.0, math.nan], equal_nan=True)


def test_complex_tensors_are_refused():
    with pytest.raises(RewardError, match="complex"):
        read(torch.zeros(3, dtype=torch.complex64))


@given(st.lists(st.floats(-LARGEST_REWARD, LARGEST_REWARD), min_size=3, max_size=3))
def test_every_sane_number_passes_unchanged(values):
    assert read(values) == values
    assert torch.tensor(values).square().sum().isfinite()
