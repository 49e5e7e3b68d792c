"""Rewards for right numbers, equivalent expressions and equations that hold."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import ClassVar

from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import need_column, read_texts
from nearstep.rewards.builtin.equations import equations, final_number
from nearstep.rewards.builtin.math_process import MathProcess
from nearstep.rewards.builtin.metadata import Metadata, Values, fields_only, need_package, settle
from nearstep.rewards.builtin.text import texts_of


@dataclass(frozen=True)
class NumericAnswer:
    """1 if the number that the completion ends on is the right one, else 0.

    Its answer is the first number behind the last \\boxed{, ####, “answer is” or “answer:”, else its last number; the
    column is read the same way, so worked solutions will do. A row whose column holds no number gives None.
    """

    __name__: ClassVar[str] = "numeric_answer"
    metadata: ClassVar[Metadata] = Metadata(gaming="A lucky number counts, whatever the steps.", needs="column answer")
    answer: str = option("answer", "column with the answer, or several")
    tolerance: float = option(1e-6, "relative error allowed", at_least=0)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there."""
        need_column(self, "answer", self.answer, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        rows = zip(texts_of(completions), read_texts(self, self.answer, columns), strict=True)
        return [self._grade(text, answers or []) for text, answers in rows]

    def _grade(self, text: str, answers: list[str]) -> float | None:
        right = [number for number in map(final_number, answers) if number is not None]
        if not right:
            return None
        given = final_number(text)
        return float(given is not None and any(abs(given - r) <= Fraction(self.tolerance) * abs(r) for r in right))


@dataclass(frozen=True)
class MathAnswer:
    """1 if the final expression of the completion is mathematically equal to the answer, else 0, by math-verify.

    It reads LaTeX and plain expressions, \\boxed first: fractions, roots, sets, intervals, matrices. A comparison runs
    in a process of its own; one that takes too long is worth 0. A row whose answer is no mathematics gives None.
    """

    __name__: ClassVar[str] = "math_answer"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="A lucky answer counts, whatever the steps; the problem restated can equal its answer.",
        needs="column answer",
        package="math_verify",
        extra="math",
    )
    answer: str = option("answer", "column with the answer, or several")
    timeout_seconds: float = option(5.0, "longest comparison of a row", above=0)

    def __post_init__(self) -> None:
        settle(self)

    def __getstate__(self) -> dict[str, object]:
        return fields_only(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column or math-verify is not there."""
        need_package(self)
        need_column(self, "answer", self.answer, columns)

    def prepare(self) -> None:
        """Start the process. Raises a RewardError if it does not start."""
        need_package(self)
        self._process.start()

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        need_package(self)
        rows = zip(texts_of(completions), read_texts(self, self.answer, columns), strict=True)
        return [self._grade(text, answers) for text, answers in rows]

    def _grade(self, text: str, answers: list[str] | None) -> float | None:
        right = self._process.is_right(text, answers, self.timeout_seconds) if answers else None
        return None if right is None else float(right)

    @cached_property
    def _process(self) -> MathProcess:
        return MathProcess()


@dataclass(frozen=True)
class Arithmetic:
    """Of the different equations between numbers in the completion, the share that holds minus the share that does not.

    Counted are sums, differences, products and quotients with “=”; rounding to the decimals shown is allowed. Text
    without any gives 0.
    """

    __name__: ClassVar[str] = "arithmetic"
    metadata: ClassVar[Metadata] = Metadata(low=-1, high=1, gaming="1 + 1 = 2 earns 1, needed or not.")

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        held = [list(equations(text).values()) for text in texts_of(completions)]
        return [(2 * sum(row) - len(row)) / len(row) if row else 0.0 for row in held]
