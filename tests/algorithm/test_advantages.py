"""GAE: golden values of both score positions, and a walk written out in plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.advantages import gae
from nearstep.algorithm.ragged import row_starts
from nearstep.algorithm.shaping import add_scores

KL = [0.02, -0.01, 0.04]
VALUES = [0.1, 0.2, 0.3]
VALUE_AFTER_EOS = 0.4


def golden(position, lam):
    """The row of algorithm notes §10.1: three actions, β = .05, score 1."""
    after = position == "after_eos"
    counts = torch.tensor([3])
    rewards = add_scores(
        -0.05 * torch.tensor(KL, dtype=torch.float64), torch.ones(1, dtype=torch.float64), counts,
        at_last=torch.tensor([not after]),
    )  # fmt: skip
    final = torch.tensor([VALUE_AFTER_EOS if after else 0.0], dtype=torch.float64)
    final_advantage = torch.tensor([1.0 if after else 0.0], dtype=torch.float64) - final
    values = torch.tensor(VALUES, dtype=torch.float64)
    advantages = gae(rewards, values, counts, final_values=final, final_advantages=final_advantage, gamma=1.0, lam=lam)
    return advantages, advantages + values, final_advantage


@pytest.mark.parametrize(
    ("position", "lam", "expected", "returns"),
    [
        ("after_eos", 0.95, [0.797345, 0.7351, 0.668], [0.897345, 0.9351, 0.968]),
        ("last_token", 0.95, [0.82442, 0.7636, 0.698], [0.92442, 0.9636, 0.998]),
        ("after_eos", 1.0, [0.8975, 0.7985, 0.698], [0.9975, 0.9985, 0.998]),
        ("last_token", 1.0, [0.8975, 0.7985, 0.698], [0.9975, 0.9985, 0.998]),
    ],
)
def test_golden_values_d9(position, lam, expected, returns):
    advantages, found_returns, final_advantage = golden(position, lam)
    torch.testing.assert_close(advantages, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(found_returns, torch.tensor(returns, dtype=torch.float64), atol=1e-6, rtol=0)
    if position == "after_eos":
        assert final_advantage.item() == pytest.approx(0.6)


def walk(rewards, values, final_value, final_advantage, gamma, lam):
    advantages, next_value, running = [], final_value, final_advantage
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        running = reward + gamma * next_value - value + gamma * lam * running
        next_value = value
        advantages.insert(0, running)
    return advantages


numbers = st.floats(-2, 2)


@given(
    st.lists(st.lists(st.tuples(numbers, numbers), max_size=5), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.data(),
)
def test_every_row_is_walked_on_its_own(rows, gamma, lam, data):
    ends = [(data.draw(numbers), data.draw(numbers)) for _ in rows]
    counts = torch.tensor([len(row) for row in rows])
    flat = torch.tensor([step for row in rows for step in row], dtype=torch.float64).reshape(-1, 2)
    found = gae(
        flat[:, 0], flat[:, 1], counts,
        final_values=torch.tensor([value for value, _ in ends], dtype=torch.float64),
        final_advantages=torch.tensor([advantage for _, advantage in ends], dtype=torch.float64),
        gamma=gamma, lam=lam,
    )  # fmt: skip
    for row, end, start, count in zip(rows, ends, row_starts(counts).tolist(), counts.tolist(), strict=True):
        expected = walk([r for r, _ in row], [v for _, v in row], *end, gamma, lam)
        assert found[start : start + count].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_row_without_actions_gets_no_reward_and_harms_nobody():
    rewards = add_scores(
        torch.zeros(2), torch.tensor([1.0, 7.0, 3.0]), torch.tensor([1, 0, 1]),
        at_last=torch.tensor([True, True, True]),
    )  # fmt: skip
    assert rewards.tolist() == [1.0, 3.0]


def test_bfloat16_inputs_are_computed_in_float32():
    one = torch.ones(3, dtype=torch.bfloat16)
    zero = torch.zeros(1)
    found = gae(one * 0.1, one, torch.tensor([3]), final_values=zero, final_advantages=zero, gamma=1.0, lam=1.0)
    assert found.dtype == torch.float32
