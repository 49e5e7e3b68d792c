"""Advantages against a group, by hand."""

import pytest
import torch

from nearstep.algorithm.advantages import group_advantages

TOTALS = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0], dtype=torch.float64)


@pytest.mark.parametrize(("rule", "expected"), [
    ("group_mean", [-2, -1, 3, 0, 0, 0]),
    ("leave_one_out", [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0]),
    ("group_normalized", [-2 / 2.64585131, -1 / 2.64585131, 3 / 2.64585131, 0, 0, 0]),
])  # fmt: skip
def test_by_hand(rule, expected):
    assert group_advantages(TOTALS, 3, rule).tolist() == pytest.approx(expected, abs=1e-6)
