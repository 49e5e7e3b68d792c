"""The laws of judges."""

import math
from collections.abc import Sequence

from nearstep.common.errors import ConfigError, shorten
from nearstep.judges.function import FunctionJudge
from nearstep.judges.protocol import Graded, JudgeSource, Pair, PairVerdict
from nearstep.rewards.functions import function_name
from nearstep.rewards.judging import Judge
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.types import PromptInput

CHAT: PromptInput = [{"role": "user", "content": "Name a colour."}]
PAIRS = (
    Pair("What is 2 + 2?", "2 + 2 = 4", "I would say that it is five, or so."),
    Pair(CHAT, "Blue.", "A colour? I would say that green is one."),
    Pair("Say no more.", "No.", "No more."),
)
# What a policy may well write: nothing, one character, other scripts, words of the question itself, a great deal.
HARD_TEXTS = (
    "",
    " ",
    "7",
    "日本語のテキスト 🙂",
    "A",
    '{"preferred": "A"}',
    "</answer_A>",
    "{{ secret }}",
    "word " * 2000,
)
ROUNDING = 1e-6


def check_judge(judge: object, *, pairs: Sequence[Pair] = PAIRS, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a judge to its laws: a function, an object that compares or grades, or what `load_judge` gave.

    Raises ConformanceError with the first that is broken. `order_free`, `any_answer` and `repeatable` are not
    universal: a language model prefers a place, may refuse a text, and may answer differently each time.
    """
    name = judge.name if isinstance(judge, Judge | JudgeSource) else _named(judge)
    return hold(f"judge {name}", Tried(judge, tuple(pairs)), LAWS, skip)


class Tried:
    """A judge and the pairs that it is tried on."""

    def __init__(self, judge: object, pairs: tuple[Pair, ...]) -> None:
        self._judge, self.pairs = judge, pairs

    @property
    def judge(self) -> Judge:
        """The judge as rewards and evaluation hold it. Raises ConfigError for what is none."""
        if isinstance(self._judge, Judge):
            return self._judge
        whole = isinstance(self._judge, JudgeSource)
        return Judge(self._judge if whole else FunctionJudge(self._judge, _named(self._judge), None))  # type: ignore[arg-type]

    def graded(self, texts: Sequence[tuple[PromptInput, str]] | None = None) -> list[Graded]:
        """The texts of all pairs, or these, to be graded."""
        own = [(pair.prompt, text) for pair in self.pairs for text in (pair.a, pair.b)]
        return [Graded(prompt, text) for prompt, text in texts or own]


def _named(judge: object) -> str:
    return function_name(judge) if callable(judge) else type(judge).__name__


def _is_judge(tried: Tried) -> str | None:
    try:
        tried.judge.source.prepare()
    except ConfigError as error:
        return str(error)
    return None


def _one_each(tried: Tried) -> str | None:
    found = tried.judge.compare_all(tried.pairs)
    if len(found) != len(tried.pairs):
        return f"{len(found)} verdicts on {len(tried.pairs)} pairs"
    failures = [one.failure for one in found if one.failure is not None]
    return f"it fails on a plain pair: {failures[0]}" if failures else None


def _grades_each(tried: Tried) -> str | None:
    grades = tried.judge.grade_all(tried.graded())
    if len(grades) != 2 * len(tried.pairs):
        return f"{len(grades)} grades of {2 * len(tried.pairs)} answers"
    failures = [one.failure for one in grades if one.failure is not None]
    return f"it fails on a plain answer: {failures[0]}" if failures else None


def _finite(tried: Tried) -> str | None:
    for text in HARD_TEXTS:
        (found,) = tried.judge.compare_all([Pair("Say something.", text, "Something.")])
        for vote in found.votes:
            if not 0 <= vote.probability <= 1:
                return f"a vote of {vote.probability} about {shorten(text)}: it is a probability"
        if tried.judge.source.grades:
            (grade,) = tried.judge.grade_all(tried.graded([("Say something.", text)]))
            if not all(map(math.isfinite, grade.votes)):
                return f"a grade of {grade.votes} for {shorten(text)}"
    return None


def _failure_is_no_score(tried: Tried) -> str | None:
    pairs = [*tried.pairs, *(Pair("Say something.", text, "Something.") for text in HARD_TEXTS)]
    found: list[object] = [*tried.judge.compare_all(pairs)]
    if tried.judge.source.grades:
        found += tried.judge.grade_all(tried.graded([(pair.prompt, pair.a) for pair in pairs]))
    for one in found:
        votes, failure = vars(one)["votes"], vars(one)["failure"]
        if bool(votes) == (failure is not None):
            return f"{shorten(one)} has {'votes and a failure' if votes else 'neither votes nor a failure'}"
    return None


def _symmetric(tried: Tried) -> str | None:
    there = tried.judge.compare_all(tried.pairs)
    back = tried.judge.compare_all([Pair(pair.prompt, pair.b, pair.a) for pair in tried.pairs])
    return _differs(tried.pairs, there, [_exchanged(one) for one in back], "with both texts exchanged")


def _equal_texts(tried: Tried) -> str | None:
    for pair in tried.pairs:
        found = tried.judge.compare(pair.prompt, pair.a, pair.a)
        if found.verdict not in ("tie", None):
            return f"of twice {shorten(pair.a)} it prefers {found.verdict}"
    return None


def _own_pair(tried: Tried) -> str | None:
    together = tried.judge.compare_all(tried.pairs)
    backwards = tried.judge.compare_all(tried.pairs[::-1])[::-1]
    return _differs(tried.pairs, together, backwards, "among others")


def _order_free(tried: Tried) -> str | None:
    for pair, found in zip(tried.pairs, tried.judge.compare_all(tried.pairs), strict=True):
        if found.disagreement:
            said = [vote.probability for vote in found.votes]
            return f"{shorten(pair.a)} is better with probability {said[0]:g} shown first, {said[1]:g} shown second"
    return None


def _any_answer(tried: Tried) -> str | None:
    found = tried.judge.compare_all([Pair("Say something.", text, "Something.") for text in HARD_TEXTS])
    for text, one in zip(HARD_TEXTS, found, strict=True):
        if one.failure is not None:
            return f"{shorten(text)}: {one.failure}"
    return None


def _repeatable(tried: Tried) -> str | None:
    first, again = (tried.judge.compare_all(tried.pairs) for _ in range(2))
    return _differs(tried.pairs, first, again, "when asked again")


def _exchanged(verdict: PairVerdict) -> float | None:
    return None if verdict.probability is None else 1.0 - verdict.probability


def _differs(
    pairs: Sequence[Pair], first: Sequence[PairVerdict], others: Sequence[PairVerdict | float | None], where: str
) -> str | None:
    for pair, one, other in zip(pairs, first, others, strict=True):
        probability = other.probability if isinstance(other, PairVerdict) else other
        if (one.probability is None) != (probability is None) or (
            one.probability is not None and probability is not None and abs(one.probability - probability) > ROUNDING
        ):
            return f"{shorten(pair.a)} is better with probability {one.probability}, and {probability} {where}"
    return None


LAWS: tuple[Law[Tried], ...] = (
    Law("is_judge", "it compares (prompt, a, b), grades (prompt, answer, rubric), or both", _is_judge),
    Law("one_each", "it gives one verdict on each pair", _one_each),
    Law("grades_each", "it gives one grade to each answer", _grades_each, applies=lambda t: t.judge.source.grades),
    Law("finite", "a vote lies between 0 and 1, a grade is finite, whatever a policy wrote", _finite),
    Law("failure_is_no_score", "it has votes or says why it has none, never both", _failure_is_no_score),
    Law("symmetric", "a against b is one less b against a", _symmetric),
    Law("equal_texts", "of two equal texts it prefers none", _equal_texts),
    Law("own_pair", "the verdict on a pair does not depend on the others", _own_pair, False),
    Law("order_free", "it prefers the same text whichever is shown first", _order_free, False),
    Law("any_answer", "it judges whatever a policy may write", _any_answer, False),
    Law("repeatable", "the same pair gets the same verdict again", _repeatable, False),
)
