"""What counts as a bug that a test could notice, and that the tree stays as it is."""

import textwrap
from pathlib import Path

import pytest

from tests.mutants.__main__ import MUTATED, REPOSITORY, STAGES, Outcome, attempt, report, stages_for
from tests.mutants.places import Mutant, sample, silent

SOURCE = textwrap.dedent('''
    """Numbers 1 + 2 in a text."""

    from typing import TYPE_CHECKING, Protocol, TypeAlias

    if TYPE_CHECKING:
        A = 1

    Either: TypeAlias = int | str

    class Reads(Protocol):
        def read(self, count: int = 1) -> int: ...

    @staticmethod
    def f(a: int | None, *, b: float = 2.0) -> float | None:
        assert a > 3, f"{a + 4}"
        if a is None:
            raise ValueError(f"{b + 5}")
        zip([a], [b], strict=True)
        return a * b - 6
''')


def test_only_what_computes_is_changed():
    pytest.importorskip("cosmic_ray")
    from tests.mutants.places import changes, mutant_of

    found = [mutant_of(change, SOURCE) for change in changes(Path("f.py"), SOURCE)]
    assert {mutant.before for mutant in found} == {
        "def f(a: int | None, *, b: float = 2.0) -> float | None:", "if a is None:", "return a * b - 6",
    }  # fmt: skip
    assert {mutant.after for mutant in found if mutant.before.startswith("return")} >= {
        "return a / b - 6", "return a + b - 6", "return a * b + 6", "return a * b - 7", "return a * b - 5",
    }  # fmt: skip


def test_silent_stretches_by_hand():
    assert silent("x: int = 1\n") == [((1, 3), (1, 6))]
    found = silent("def f(a: int) -> str:\n    raise E(1)\n")
    assert sorted(found) == [((1, 9), (1, 12)), ((1, 17), (1, 20)), ((2, 4), (2, 14))]


def test_a_sample_is_the_same_again_and_has_one_change_at_a_place(tmp_path):
    pytest.importorskip("cosmic_ray")
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "f.py").write_text(SOURCE)
    first, again, other = (sample(tmp_path, ["room"], 4, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({mutant.text for mutant in first}) == 4


def test_every_stage_names_tests_that_are_there():
    named = [word for stage in STAGES for word in stage if word.startswith("tests/")]
    assert all((REPOSITORY / name).exists() for name in [*named, *MUTATED])
    assert stages_for(Mutant(Path(MUTATED[1], "loop.py"), 1, "", "", "")) == [1, 2, 3]


def test_the_share_and_the_goal():
    mutant = Mutant(Path("f.py"), 3, "a + b", "a - b", "")
    text, reached = report([Outcome(mutant, "FAILED test", 60.0)] * 9 + [Outcome(mutant, None, 60.0)], goal=0.9)
    assert text == "f.py:3\n  - a + b\n  + a - b\nnoticed: 9 of 10, 90% (goal 90%), 10 minutes of tests"
    assert reached
    assert not report([Outcome(mutant, None, 1.0)], goal=0.9)[1]


@pytest.mark.slow
def test_a_bug_is_noticed_or_survives_and_the_file_is_as_before(tmp_path, monkeypatch):
    (tmp_path / "src").mkdir()
    file = tmp_path / "src" / "sums.py"
    file.write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "test_sums.py").write_text("from sums import add\n\ndef test_add():\n    assert add(2, 2) == 4\n")
    monkeypatch.setattr("tests.mutants.__main__.STAGES", [("test_sums.py",)] * 2)
    monkeypatch.setattr("tests.mutants.__main__.stages_for", lambda mutant: [0, 1])

    def noticed_by(text):
        return attempt(tmp_path, Mutant(Path("src/sums.py"), 2, "", "", text), [60.0, 60.0]).noticed_by

    assert noticed_by("def add(a, b):\n    return a - b\n") == "FAILED test_sums.py::test_add"
    assert noticed_by("def add(a, b):\n    return a * b\n") is None
    assert noticed_by("def add(a, b):\n    return a +\n").startswith("ERROR")
    assert file.read_text() == "def add(a, b):\n    return a + b\n"
