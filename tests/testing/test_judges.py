"""The laws of judges: ours keep them, and broken ones are caught."""

import math
from dataclasses import dataclass
from itertools import count

import pytest

from nearstep import JudgeConfig, load_judge
from nearstep.cli.main import main
from nearstep.common.errors import ConformanceError
from nearstep.judges.protocol import PairVerdict, Usage, Vote
from nearstep.testing import check_judge
from nearstep.testing.kinds import kind_of
from tests.judges.stub import Stub, chat, longer, preferring


def shorter(prompt, a, b):
    return "a" if len(a) < len(b) else "b" if len(b) < len(a) else "tie"


def words(prompt, answer, rubric=None):
    return len(answer.split())


def first_always(prompt, a, b):
    return 0.9


calls = count()


def moody(prompt, a, b):
    return float(a < b) if next(calls) < 6 else 0.25


def picky(prompt, a, b):
    return "tie" if a[0] == b[0] else "a" if a[0] < b[0] else "b"


@dataclass
class Whole:
    """A source with all its members, broken in one way."""

    broken: str
    name: str = "whole"
    grades: bool = False

    @property
    def usage(self):
        return Usage()

    def prepare(self):
        pass

    def grade_all(self, questions):
        raise NotImplementedError

    def compare_all(self, pairs):
        if self.broken == "one_each":
            return []
        return [self.compare(pair, number) for number, pair in enumerate(pairs)]

    def compare(self, pair, number):
        fair = 0.5 + 0.4 * ((pair.a < pair.b) - (pair.b < pair.a))
        match self.broken:
            case "finite":
                return PairVerdict((Vote(math.nan if pair.a == "" else fair),))
            case "failure_is_no_score":
                return PairVerdict((Vote(0.0),), failure="no idea") if pair.a == " " else PairVerdict((Vote(fair),))
            case "symmetric":
                return PairVerdict((Vote(0.9),))
            case "equal_texts":
                return PairVerdict((Vote(0.5 + 0.4 * ((pair.a <= pair.b) - (pair.b < pair.a))),))
            case "own_pair":
                return PairVerdict((Vote(fair if number else 0.5),))
        return PairVerdict((Vote(fair),))


@pytest.mark.parametrize("judge", [shorter, words, Whole("nothing")])
def test_what_keeps_the_laws(judge):
    assert check_judge(judge).held
    assert kind_of(judge) == "judge"


def test_a_judge_at_a_server_keeps_them():
    def answer(handler, question):
        is_pair = "<answer_B>" in question["messages"][0]["content"]
        longer(handler, question) if is_pair else handler.answer(*chat('{"grade": 3}'))

    with Stub(answer) as server:
        result = check_judge(load_judge(JudgeConfig(judge=server.url)))
    assert (result.not_offered, result.skipped) == ((), ())


@pytest.mark.parametrize(("judge", "law"), [
    *((Whole(law), law) for law in ("one_each", "finite", "failure_is_no_score")),
    *((Whole(law), law) for law in ("symmetric", "equal_texts", "own_pair")),
    (first_always, "order_free"),
    (picky, "any_answer"),
    (7, "is_judge"),
])  # fmt: skip
def test_what_breaks_a_law_is_caught(judge, law):
    with pytest.raises(ConformanceError, match=f"breaks the law '{law}'"):
        check_judge(judge)


def test_a_judge_with_moods_is_not_repeatable():
    with pytest.raises(ConformanceError, match=r"(?s)breaks the law '\w+'.*probability"):
        check_judge(moody)


def test_a_biased_server_breaks_a_law_that_may_be_skipped():
    with Stub(preferring("A")) as server:
        judge = load_judge(JudgeConfig(judge=server.url))
        judge.source.grades = False
        with pytest.raises(
            ConformanceError, match=r"(?s)breaks the law 'order_free'.*probability 1 shown first, 0 shown"
        ):
            check_judge(judge)
        assert check_judge(judge, skip=["order_free"]).held


def test_the_command_tells_judges_from_rewards(tmp_path, capsys):
    (tmp_path / "my.py").write_text("def f(prompt, a, b): return 'tie'\ndef g(prompt, answer, rubric): return 1\n")
    for name in "fg":
        assert main(["check", f"{tmp_path / 'my.py'}:{name}"]) == 0
        assert f"judge {name}: 1" in capsys.readouterr().out
