"""What a judge is asked and what it says: comparisons and grades, each with its votes, or why there is none."""

import math
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from nearstep.common.messages import PromptInput

Winner: TypeAlias = Literal["a", "b", "tie"]
ROUNDING = 1e-9  # p and 1 − p of two orders need not add up to exactly 1


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, of which one may be better."""

    prompt: PromptInput
    a: str
    b: str


@dataclass(frozen=True)
class Graded:
    """An answer to be graded by a rubric; None for the judge's own."""

    prompt: PromptInput
    answer: str
    rubric: str | None = None


@dataclass(frozen=True)
class Failed:
    """Why a question got no answer that could be read."""

    reason: str


Reading: TypeAlias = float | Failed  # one answer to one question, read


@dataclass(frozen=True)
class Vote:
    """How likely, by one answer, `a` is the better text, from 0 to 1; `swapped`: `b` was shown first.

    None for a judge that sees each text alone, and so in no order.
    """

    probability: float
    swapped: bool | None = None

    @property
    def first_wins(self) -> float | None:
        """1 where the text shown first is preferred, 0 where the other is; None where neither is, or without order."""
        if self.swapped is None or _winner(self.probability) == "tie":
            return None
        return float((self.probability > 0.5) != self.swapped)


@dataclass(frozen=True)
class PairVerdict:
    """What a judge says of a pair: its votes, or why there is none. A failure is no verdict."""

    votes: tuple[Vote, ...] = ()
    failure: str | None = None

    @staticmethod
    def of_orders(forward: Sequence[Reading], backward: Sequence[Reading]) -> "PairVerdict":
        """From readings of how likely the text shown first is the better one: `a` first in `forward`, then `b`.

        A vote counts only with its counterpart in the other order: alone it would carry the judge's bias for a place.
        """
        votes: list[Vote] = []
        failures: list[Failed] = []
        for one, other in zip(forward, backward, strict=True):
            if isinstance(one, Failed) or isinstance(other, Failed):
                failures += [reading for reading in (one, other) if isinstance(reading, Failed)]
            else:
                votes += [Vote(one, swapped=False), Vote(1.0 - other, swapped=True)]
        return PairVerdict(tuple(votes), None if votes else failures[0].reason)

    @property
    def probability(self) -> float | None:
        """How likely `a` is the better text: the mean of the votes; None after a failure."""
        return math.fsum(vote.probability for vote in self.votes) / len(self.votes) if self.votes else None

    @property
    def verdict(self) -> Winner | None:
        """The text that is better by the mean of the votes; None after a failure."""
        return None if self.probability is None else _winner(self.probability)

    @property
    def disagreement(self) -> float | None:
        """The share of votes whose counterpart in the other order says otherwise; None without orders."""
        if not self.votes or self.votes[0].swapped is None:
            return None
        said = [_winner(vote.probability) for vote in self.votes]
        pairs = list(zip(said[::2], said[1::2], strict=True))
        return sum(one != other for one, other in pairs) / len(pairs)


EQUAL_TEXTS = PairVerdict((Vote(0.5),))


def different(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that a judge has to be asked about: not those of two equal texts."""
    return [pair for pair in pairs if pair.a != pair.b]


def with_equal_texts(pairs: Sequence[Pair], found: Iterable[PairVerdict]) -> list[PairVerdict]:
    """Comparisons of the different pairs, and a tie, in no order, for each of the others."""
    rest = iter(found)
    return [next(rest) if pair.a != pair.b else EQUAL_TEXTS for pair in pairs]


def _winner(probability: float) -> Winner:
    if abs(probability - 0.5) <= ROUNDING:
        return "tie"
    return "a" if probability > 0.5 else "b"


@dataclass(frozen=True)
class TextGrade:
    """What a judge says of one answer: a grade by each vote, or why there is none. A failure is no grade."""

    votes: tuple[float, ...] = ()
    failure: str | None = None

    @staticmethod
    def of(readings: Sequence[Reading]) -> "TextGrade":
        """From one reading at least; those that failed count only where all did."""
        votes = tuple(reading for reading in readings if not isinstance(reading, Failed))
        reasons = [reading.reason for reading in readings if isinstance(reading, Failed)]
        return TextGrade(votes, None if votes else reasons[0])

    @property
    def score(self) -> float | None:
        """The mean of the votes; None after a failure."""
        return math.fsum(self.votes) / len(self.votes) if self.votes else None

    @property
    def disagreement(self) -> float | None:
        """How far the votes lie apart, in grades; None after a failure."""
        return max(self.votes) - min(self.votes) if self.votes else None


@dataclass
class Usage:
    """What was asked, and what it took."""

    questions: int = 0  # texts in one order, each vote counted
    cached: int = 0  # of them, answered from the cache or by the answer to the same question
    refused: int = 0  # of them, never asked: max_cost was reached, or the server had stopped answering
    requests: int = 0  # every try counted
    question_tokens: int = 0
    answer_tokens: int = 0
    cost: float = 0.0  # by the prices, of answers that came
    unbilled: float = field(default=0.0)  # at most this more: tries that broke, which a server may have counted


@runtime_checkable
class JudgeSource(Protocol):
    """Whatever stands behind a judge; it answers questions in batches, at once or by an awaitable."""

    @property
    def name(self) -> str:
        """Under which it is reported."""

    @property
    def grades(self) -> bool:
        """Whether it can grade one answer; any can compare two."""

    @property
    def usage(self) -> Usage:
        """What was asked so far."""

    def prepare(self) -> None:
        """Load what it needs, such as a model; called before the first question, twice is fine."""

    def compare_all(self, pairs: Sequence[Pair]) -> list[PairVerdict] | Awaitable[list[PairVerdict]]:
        """One comparison for each pair, in their order; a failure stands in it and is not raised."""

    def grade_all(self, questions: Sequence[Graded]) -> list[TextGrade] | Awaitable[list[TextGrade]]:
        """One grade for each answer, in their order."""
