"""What is said of a finished reward model, and when a warning belongs to it."""

import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from nearstep.reward_modeling.measures import grade_measures, pair_measures
from nearstep.reward_modeling.report import RewardReport


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def of_pairs(right, wrong, margins=None):
    count = right + wrong
    chosen = tensor(*[1.0] * right, *[-1.0] * wrong)
    margins = tensor(*(margins or [0.0] * count))
    return pair_measures(chosen, tensor(*[0.0] * count), tensor(*[1.0] * count), margins)


def report(held_out):
    return RewardReport("pairwise", 5, 100, "pairs", held_out, "mean", -0.5)


def shown(found):
    console = Console(width=120)
    with console.capture() as capture:
        for table in found.tables():
            console.print(table)
    return capture.get()


@pytest.mark.parametrize(
    ("held_out", "warns"),
    [
        (of_pairs(90, 10), False),
        (of_pairs(5, 5), True),
        (of_pairs(6, 2), True),  # 75 %, but of 8: chance gives as much
        (grade_measures(tensor(1, 2, 3), tensor(1, 2, 4)), False),
        (grade_measures(tensor(3, 2, 1), tensor(1, 2, 4)), True),
        (grade_measures(tensor(1.0), tensor(1.0)), True),
        (None, False),
    ],
)
def test_a_model_that_knows_nothing_is_told(held_out, warns):
    assert (report(held_out).remark() is not None) == warns


def test_the_correlation_with_labels_is_shown_where_there_are_margins():
    assert "gap correlation" not in shown(report(of_pairs(3, 1)))
    assert "gap correlation" in shown(report(of_pairs(3, 1, [1, 2, 3, 1])))


def test_what_is_no_number_stands_as_null(tmp_path):
    report(of_pairs(3, 1)).write(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["held_out"]["gap_correlation"] is None
    assert found["held_out"]["accuracy"] == 0.75
    assert (found["steps"], found["offset"]) == (5, -0.5)
    replace(report(None), unit="texts").write(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["held_out"] is None
