"""A judge of the user's in Python: a function that compares or grades, or an object that does either or both."""

import inspect
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from nearstep.common.attempts import Attempt
from nearstep.common.errors import ConfigError, shorten
from nearstep.common.messages import PromptInput
from nearstep.judges.protocol import (
    Failed,
    Graded,
    Pair,
    PairVerdict,
    Reading,
    TextGrade,
    Usage,
    Vote,
    different,
    with_equal_texts,
)

WORDS = {"a": 1.0, "b": 0.0, "tie": 0.5}
SHAPES = "(prompt, a, b), which compares, or (prompt, answer, rubric), which grades"


@runtime_checkable
class Compares(Protocol):
    """An object that says which of two answers is better."""

    def compare(self, prompt: PromptInput, a: str, b: str) -> object:
        """\"a\", \"b\", \"tie\", or how likely a is the better one, from 0 to 1."""


@runtime_checkable
class Grades(Protocol):
    """An object that says how good an answer is."""

    def grade(self, prompt: PromptInput, answer: str, rubric: str | None) -> object:
        """A finite number, more for a better answer."""


class FunctionJudge:
    """See JudgeSource. What compares is asked in both orders; what only grades compares by its grades."""

    def __init__(self, judge: object, name: str, rubric: str | None) -> None:
        """Raises ConfigError for what can do neither."""
        self.name, self.usage, self._rubric = name, Usage(), rubric
        self._compare, self._grade = _members(judge, name)

    @property
    def grades(self) -> bool:
        """Whether it grades."""
        return self._grade is not None

    def prepare(self) -> None:
        """It was loaded when it was named."""

    def compare_all(self, pairs: Sequence[Pair]) -> list[PairVerdict]:
        """By its own comparison, else by its grades."""
        if self._compare is None:
            return [self._by_grades(pair) for pair in pairs]
        found = (
            PairVerdict.of_orders(
                [self._first(pair.prompt, pair.a, pair.b)], [self._first(pair.prompt, pair.b, pair.a)]
            )
            for pair in different(pairs)
        )
        return with_equal_texts(pairs, found)

    def grade_all(self, questions: Sequence[Graded]) -> list[TextGrade]:
        """Its grade of every answer."""
        return [TextGrade.of([self._graded(one.prompt, one.answer, one.rubric)]) for one in questions]

    def _first(self, prompt: PromptInput, first: str, second: str) -> Reading:
        assert self._compare is not None
        self.usage.questions += 1
        value = self._called(self._compare, prompt, first, second)
        if isinstance(value, Failed):
            return value
        if isinstance(value, str) and value in WORDS:
            return WORDS[value]
        if isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) <= 1:
            return float(value)
        return Failed(f"judge {self.name!r} said {shorten(value)}: it may say a, b, tie, or a number from 0 to 1")

    def _graded(self, prompt: PromptInput, answer: str, rubric: str | None) -> Reading:
        if self._grade is None:
            return Failed(f"judge {self.name!r} compares and does not grade")
        self.usage.questions += 1
        value = self._called(self._grade, prompt, answer, rubric or self._rubric)
        if isinstance(value, Failed):
            return value
        if isinstance(value, Real) and math.isfinite(value):
            return float(value)
        return Failed(f"judge {self.name!r} graded with {shorten(value)}: a grade is a finite number")

    def _by_grades(self, pair: Pair) -> PairVerdict:
        grades = [self._graded(pair.prompt, text, None) for text in (pair.a, pair.b)]
        failures = [grade for grade in grades if isinstance(grade, Failed)]
        if failures:
            return PairVerdict(failure=failures[0].reason)
        a, b = (grade for grade in grades if isinstance(grade, float))
        return PairVerdict((Vote(0.5 if a == b else float(a > b)),))

    def _called(self, function: Callable[..., Any], *arguments: object) -> object:
        failures: list[str] = []
        value: object = None
        with Attempt(None, failures):
            value = function(*arguments)
        return Failed(f"judge {self.name!r} failed: {failures[0]}") if failures else value


def _members(judge: object, name: str) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """What compares and what grades."""
    compare = judge.compare if isinstance(judge, Compares) else None
    grade = judge.grade if isinstance(judge, Grades) else None
    if compare is None and grade is None:
        if not callable(judge):
            raise ConfigError(
                f"judge {name!r} is {shorten(judge)}: give a function of {SHAPES}, or an object with these"
            )
        return _told_apart(judge, name)
    for function, wanted in ((compare, ("prompt", "a", "b")), (grade, ("prompt", "answer", "rubric"))):
        if function is not None:
            _check_call(function, wanted, name)
    return compare, grade


def _told_apart(judge: Callable[..., Any], name: str) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """A function by the names of what it takes."""
    names = list(_signature(judge, name).parameters)
    if "answer" in names:
        _check_call(judge, ("prompt", "answer", "rubric"), name)
        return None, judge
    if {"a", "b"} <= set(names):
        _check_call(judge, ("prompt", "a", "b"), name)
        return judge, None
    raise ConfigError(f"judge {name!r} takes ({', '.join(names)}): it must take {SHAPES}")


def _check_call(function: Callable[..., Any], wanted: Sequence[str], name: str) -> None:
    try:
        _signature(function, name).bind(*wanted)
    except TypeError as error:
        raise ConfigError(f"judge {name!r} cannot be called with ({', '.join(wanted)}): {error}") from error


def _signature(function: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"judge {name!r} ({shorten(function)}) has no readable signature: wrap it") from error
