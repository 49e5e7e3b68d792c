"""Rewards for right numbers, equivalent expressions and equations that hold."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from nearstep.config.settings import option
from nearstep.rewards.builtin.equations import equations, final_number
from nearstep.rewards.builtin.math_process import MathProcess
from nearstep.rewards.builtin.metadata import ColumnReward, Metadata, TextReward, column_name


@dataclass(frozen=True)
class NumericAnswer(ColumnReward):
    """1 if the number that the completion ends on is the right one, else 0.

    Its answer is the first number behind the last \\boxed{, ####, “answer is” or “answer:”, else its last number; the
    column is read the same way, so worked solutions will do. A row whose column holds no number gives None.
    """

    __name__ = "numeric_answer"
    metadata = Metadata(gaming="A lucky number counts, whatever the steps.", needs="column answer")
    answer: str = column_name("answer", "column with the answer, or several")
    tolerance: float = option(1e-6, "relative error allowed", at_least=0)

    def value(self, text: str, cell: list[str]) -> float | None:
        right = [number for number in map(final_number, cell) if number is not None]
        if not right:
            return None
        given = final_number(text)
        return float(given is not None and any(abs(given - r) <= Fraction(self.tolerance) * abs(r) for r in right))


@dataclass(frozen=True)
class MathAnswer(ColumnReward):
    """1 if the final expression of the completion is mathematically equal to the answer, else 0, by math-verify.

    It reads LaTeX and plain expressions, \\boxed first: fractions, roots, sets, intervals, matrices. A comparison runs
    in a process of its own; one that takes too long is worth 0. A row whose answer is no mathematics gives None.
    """

    __name__ = "math_answer"
    metadata = Metadata(
        gaming="A lucky answer counts, whatever the steps; the problem restated can equal its answer.",
        needs="column answer",
        package="math_verify",
        extra="math",
    )
    answer: str = column_name("answer", "column with the answer, or several")
    timeout_seconds: float = option(5.0, "longest comparison of a row", above=0)

    def prepare(self) -> None:
        """Start the process. Raises a RewardError if it does not start."""
        self.need_package()
        self._process.start()

    def value(self, text: str, cell: list[str]) -> float | None:
        right = self._process.is_right(text, cell, self.timeout_seconds)
        return None if right is None else float(right)

    @cached_property
    def _process(self) -> MathProcess:
        return MathProcess()


@dataclass(frozen=True)
class Arithmetic(TextReward):
    """Of the different equations between numbers in the completion, the share that holds minus the share that does not.

    Counted are sums, differences, products and quotients with “=”; rounding to the decimals shown is allowed. Text
    without any gives 0.
    """

    __name__ = "arithmetic"
    metadata = Metadata(low=-1, high=1, gaming="1 + 1 = 2 earns 1, needed or not.")

    def value(self, text: str) -> float:
        held = list(equations(text).values())
        return (2 * sum(held) - len(held)) / len(held) if held else 0.0
