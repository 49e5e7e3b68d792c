"""What a reward model learns from, as token ids: texts compared with one another, or texts with a score each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.common.errors import DataError


@dataclass(frozen=True)
class PreferenceLabel:
    """Which of two rows of a comparison is the better one.

    `preference` is the probability that it is: 1 for a plain pair, ½ for a tie. `margin` is by how much it is better.
    Raises DataError for a row that is called better and less often is.
    """

    better: int
    worse: int
    margin: float = 0.0
    preference: float = 1.0

    def __post_init__(self) -> None:
        if not 0.5 <= self.preference <= 1:
            raise DataError(
                f"the preference of a label is {self.preference:g}, and must be from 0.5, a tie, to 1. If the other "
                "row is the better one, exchange better and worse."
            )


@dataclass(frozen=True)
class Comparison:
    """Rows of ids, usually answers to one prompt, and what is known of their order. A pair has two rows."""

    rows: tuple[list[int], ...]
    labels: tuple[PreferenceLabel, ...]

    def best_rows(self) -> list[list[int]]:
        """The rows that lost no comparison: for a pair the chosen one, for a tie both."""
        lost = {label.worse for label in self.labels if label.preference > 0.5}
        return [row for number, row in enumerate(self.rows) if number not in lost]

    def pairs(self) -> list["Comparison"]:
        """A comparison of two rows for every label."""
        return [
            Comparison((self.rows[label.better], self.rows[label.worse]), (replace(label, better=0, worse=1),))
            for label in self.labels
        ]


@dataclass(frozen=True)
class Grade:
    """A row of ids and its target reward."""

    row: list[int]
    target: float

    def best_rows(self) -> list[list[int]]:
        """The row: nothing is known to be better."""
        return [self.row]


@dataclass(frozen=True)
class PairBatch:
    """Rows by group, and all pairs among them by the numbers of their rows, counted through all groups."""

    groups: list[list[list[int]]]
    better: Int[Tensor, " pairs"]
    worse: Int[Tensor, " pairs"]
    margins: Float[Tensor, " pairs"]
    preferences: Float[Tensor, " pairs"]

    @staticmethod
    def of(comparisons: Sequence[Comparison]) -> "PairBatch":
        """The batch of some comparisons, in order."""
        groups = [list(comparison.rows) for comparison in comparisons]
        starts = accumulate(map(len, groups), initial=0)
        labels = [(start, label) for start, each in zip(starts, comparisons, strict=False) for label in each.labels]
        return PairBatch(
            groups,
            torch.tensor([start + label.better for start, label in labels]),
            torch.tensor([start + label.worse for start, label in labels]),
            torch.tensor([label.margin for _, label in labels]),
            torch.tensor([label.preference for _, label in labels]),
        )


@dataclass(frozen=True)
class GradeBatch:
    """Rows, each a group of its own, and their targets."""

    groups: list[list[list[int]]]
    targets: Float[Tensor, " rows"]

    @staticmethod
    def of(grades: Sequence[Grade]) -> "GradeBatch":
        """The batch of some grades, in order."""
        return GradeBatch([[grade.row] for grade in grades], torch.tensor([grade.target for grade in grades]))
