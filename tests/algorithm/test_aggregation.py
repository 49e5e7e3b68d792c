"""Aggregation: the golden values of four ways to add up two rows, and what no way may depend on."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.aggregation import MinibatchCounts, SequenceMean, SequenceSum, TokenMean, TokenSum

COUNTS = torch.tensor([1, 3])
LOSSES = torch.tensor([4.0, 1, 1, 1])


def aggregate(rule, losses=LOSSES, counts=COUNTS):
    weighted = (rule.weights(counts) * losses).sum()
    return float(weighted / rule.divisor(MinibatchCounts(tokens=counts.sum(), rows=(counts > 0).sum())))


RULES = {TokenMean(): 1.75, SequenceMean(): 2.5, SequenceSum(): 3.5, SequenceSum(4): 0.875, TokenSum(): 7.0}


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_golden_values_10_8(rule):
    assert aggregate(rule) == pytest.approx(RULES[rule])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rows_without_actions_change_nothing_and_nothing_divides_by_zero(rule):
    assert aggregate(rule, counts=torch.tensor([1, 0, 3, 0])) == pytest.approx(aggregate(rule))
    assert aggregate(rule, torch.zeros(0), torch.zeros(2, dtype=torch.long)) == 0


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6))
def test_a_sequence_mean_of_ones_is_one_whatever_the_lengths(lengths):
    counts = torch.tensor(lengths)
    assert aggregate(SequenceMean(), torch.ones(sum(lengths)), counts) == pytest.approx(1, rel=1e-5)
