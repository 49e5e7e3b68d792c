"""Gates: which groups are kept, by hand."""

import math

import pytest
import torch

from nearstep.training.gates import FinishedGroups, MeanScore, ScoreRange, ValueGap
from nearstep.training.sampling import gate_metrics, stand_ins

NAN = math.nan


def groups(scores, values=None, returns=None):
    scores = torch.tensor(scores, dtype=torch.float64)
    lengths = torch.ones(scores.shape, dtype=torch.long)
    return FinishedGroups(
        scores,
        scores if returns is None else torch.tensor(returns, dtype=torch.float64),
        lengths,
        lengths > 0,
        None if values is None else torch.tensor(values, dtype=torch.float64),
    )


@pytest.mark.parametrize(("gate", "expected"), [
    (ScoreRange(), [False, True, True, False, False, True]),
    (ScoreRange(0.25), [False, True, False, False, False, True]),  # more than, not as much as
    (ScoreRange(0.0, 1.0), [False, True, True, False, False, False]),  # as much as, not more than
    (MeanScore(0.0, 1.0), [False, True, True, True, False, False]),  # the ends left out; a mean of the scored alone
    (MeanScore(low=0.5), [True, False, False, True, False, False]),
    (MeanScore(high=0.5), [False, False, True, False, False, True]),
], ids=str)  # fmt: skip
def test_by_scores(gate, expected):
    """All alike; half right; close together; one of two scored; none scored; −2 and 1."""
    found = gate.keep(groups([[1.0, 1.0], [0.0, 1.0], [0.25, 0.5], [NAN, 0.75], [NAN, NAN], [-2.0, 1.0]]))
    assert found.tolist() == expected


def test_by_the_gap_of_the_value():
    """Mean gaps: 0.5, 0.1, 0.9 of the one that was scored, none, 0.5."""
    some = groups(
        [[0.0, 0.0]] * 5,
        values=[[0.5, 0.5], [0.5, 0.5], [0.1, 0.1], [0.5, 0.5], [0.5, 0.5]],
        returns=[[0.0, 1.0], [0.4, 0.6], [NAN, 1.0], [NAN, NAN], [1.0, 1.0]],
    )
    assert ValueGap(0.1).keep(some).tolist() == [True, False, True, False, True]
    assert ValueGap(0.6).keep(some).tolist() == [False, False, True, False, False]
    assert ValueGap(share=0.4).keep(some).tolist() == [True, False, True, False, False]  # a tie: the first
    assert ValueGap(share=0.5).keep(some).tolist() == [True, False, True, False, True]  # of five at least a half
    ten = groups([[0.0]] * 10, values=[[0.0]] * 10, returns=[[float(place)] for place in range(10)])
    assert ValueGap(low=-1.0, share=0.7).keep(ten).tolist() == [False] * 3 + [True] * 7
    assert ValueGap(0.6, share=0.8).keep(some).tolist() == [False, False, True, False, False]


def test_a_group_of_one_has_a_gap_and_no_range():
    one = groups([[0.0], [1.0]], values=[[0.0], [0.0]])
    assert ScoreRange().keep(one).tolist() == [False, False]
    assert ValueGap(0.5).keep(one).tolist() == [False, True]


def test_copies_are_as_even_as_can_be_and_drawn_by_the_seed():
    kept = torch.tensor([True, False, False, True, False, False, False])
    drawn = [stand_ins(kept, seed, 1) for seed in range(8)]
    for found in drawn:
        assert list(found) == [1, 2, 4, 5, 6]
        times = [list(found.values()).count(place) for place in (0, 3)]
        assert sorted(times) == [2, 3]
    assert drawn[0] == stand_ins(kept, 0, 1)
    assert len({tuple(found.values()) for found in drawn}) == 2
    assert stand_ins(kept & False, 0, 1) == {}
    assert stand_ins(kept | True, 0, 1) == {}


def test_metrics_of_two_rounds_by_hand():
    """Four places; two of the first round and one of two of the second are kept."""
    rounds = [groups([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]), groups([[1.0, NAN], [0.0, 1.0]])]
    found = gate_metrics(torch.tensor([True, False, True, True]), rounds).numbers()
    assert found == pytest.approx({
        "gate/dropped": 3 / 6, "gate/empty": 1 / 4, "gate/rounds": 2, "gate/scores": 6 / 11,
        "gate/scores_std": math.sqrt(6 / 11 * 5 / 11),
    })  # fmt: skip
