"""The numbers of an evaluation, worked out by hand."""

from math import sqrt

import pytest

from nearstep.common.intervals import wilson
from nearstep.evaluation.eval_answers import EvaluatedRow, Opponents, ScoredAnswer, answer_text, reference_column
from nearstep.evaluation.row_numbers import evaluation_numbers


def row(number, sample, score, *, kl=None, length=4, finished=True, judge=None, **parts):
    answer = ScoredAnswer("text", score, judge)
    return EvaluatedRow(number, sample, "prompt", answer, length, finished, kl, parts, {})


def against(start=None, reference=None):
    return Opponents(
        None if start is None else ScoredAnswer("start", start),
        None if reference is None else ScoredAnswer("r", reference),
    )


def test_means_have_the_standard_error_over_prompts():
    """Two responses to each of three prompts: the prompts' means are 1, 2, 6."""
    rows = [row(number, sample, score, kl=score / 2) for number, both in enumerate([(0, 2), (2, 2), (5, 7)])
            for sample, score in enumerate(map(float, both))]  # fmt: skip
    numbers = evaluation_numbers(rows, [against()] * 6)
    assert numbers["objective/scores"] == 3.0
    assert numbers["objective/scores_n"] == 3
    assert numbers["objective/scores_stderr"] == pytest.approx(sqrt(7) / sqrt(3))  # (4 + 1 + 9) / 2 = 7
    assert numbers["objective/scores_std"] == pytest.approx(sqrt((9 + 1 + 1 + 1 + 4 + 16) / 6))
    assert numbers["objective/kl"] == 1.5
    assert not any(name.startswith(("win_rate", "judge")) for name in numbers)


def test_a_share_of_wins_counts_ties_half_and_leaves_out_what_was_not_scored():
    rows = [row(0, 0, 1.0), row(1, 0, 2.0), row(2, 0, None), row(3, 0, 0.0), row(4, 0, 5.0)]
    starts = [against(0.0, 3.0), against(2.0), against(0.0), against(1.0), against(None)]
    numbers = evaluation_numbers(rows, starts)
    assert numbers["win_rate/start"] == 0.5  # won, tied, lost
    assert numbers["win_rate/start_n"] == 3
    assert (numbers["win_rate/start_low"], numbers["win_rate/start_high"]) == wilson(0.5, 3)
    assert (numbers["win_rate/reference"], numbers["win_rate/reference_n"]) == (0.0, 1)
    assert numbers["objective/scores_n"] == 4


def test_one_prompt_has_no_error_and_an_absent_number_is_absent():
    numbers = evaluation_numbers([row(0, 0, 1.0, part=2.0, other=None), row(0, 1, 2.0, part=4.0, other=None)],
                                 [against()] * 2)  # fmt: skip
    assert "objective/scores_stderr" not in numbers
    assert numbers["reward/part"] == 3.0
    assert "reward/other" not in numbers
    assert evaluation_numbers([], []) == {}


def test_wilson_by_hand():
    """z = 1.959964; a share of 0 of 4: 0 and z² / (4 + z²)."""
    assert wilson(0.0, 4) == (0.0, pytest.approx(3.841459 / 7.841459, rel=1e-6))
    assert wilson(1.0, 4) == (pytest.approx(4 / 7.841459, rel=1e-6), 1.0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        ([{"role": "assistant", "content": "said"}], "said"),
        ([{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}], "said"),
        ([{"role": "user", "content": "asked"}], None),
        ([], None),
        (None, None),
        (7, None),
    ],
)
def test_text_of_a_reference(value, text):
    assert answer_text(value) == text


def test_which_column_holds_references():
    assert reference_column(["chosen", "completion", "x"], None) == "completion"
    assert reference_column(["chosen", "reference"], None) == "reference"
    assert reference_column(["x"], None) is None
    assert reference_column(["x", "reference"], "x") == "x"
