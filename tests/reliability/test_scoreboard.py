"""The scoreboard's selectors select something, and what several sittings found becomes one table."""

import ast
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.mutants.planted import BUGS
from tests.reliability import scoreboard

REPOSITORY = Path(__file__).parents[2]
SELECTORS = [shlex.split(selector) for _, selectors in scoreboard.CHECKS.values() for selector in selectors]


def words_of(selector):
    """The words of -k, which stand for tests by parts of their names."""
    return (
        set(re.findall(r"\w+", selector[selector.index("-k") + 1])) - {"and", "or", "not"} if "-k" in selector else ()
    )


@pytest.mark.parametrize("selector", SELECTORS, ids=" ".join)
def test_every_selector_selects_something_and_not_everything(selector):
    file = REPOSITORY / selector[0]
    names = [
        node.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    assert names
    for word in words_of(selector):
        assert any(word in name for name in names), word
        assert word not in selector[0], "pytest looks for it in the path as well"


def test_the_tests_that_should_notice_planted_bugs_are_there():
    for tests in {bug.tests for bug in BUGS}:
        files = [REPOSITORY / each for each in tests if each.endswith(".py")]
        assert all(file.is_file() for file in files)
        assert all(any(word in file.read_text() for file in files) for word in words_of(tests))


@pytest.fixture
def sitting(tmp_path, monkeypatch):
    """A sitting on some code, in which checks end as they are told to."""

    def sit(words, source, *, fails=()):
        facts = {"commit": f"commit of {source}", "source": source}
        monkeypatch.setattr(scoreboard, "machine", lambda: facts)

        def answer(command, **given):
            failed = any(selector in command for name in fails for selector in scoreboard.CHECKS[name][1])
            said = "===== 1 failed in 1 s =====" if failed else "===== 2 passed in 1 s ====="
            return subprocess.CompletedProcess(command, int(failed), said, "")

        monkeypatch.setattr(scoreboard.subprocess, "run", answer)
        return scoreboard.main(words, tmp_path)

    return sit


def test_sittings_are_put_together_and_other_code_is_marked(sitting, tmp_path):
    def row(name):
        (line,) = [line for line in (tmp_path / "reliability.md").read_text().splitlines() if f"| {name} |" in line]
        return [cell.strip() for cell in line.split("|")[3:7]]

    assert sitting(["--only", "R01", "R02"], "old") == 0
    assert sitting(["--only", "R02", "R03"], "new", fails=["R03"]) == 1
    assert row("R01")[0] == "passed, other code"
    assert row("R02")[0::2] == ["passed", "commit of new"]
    assert row("R03")[0] == "failed"
    assert row("R04")[0] == "not run"
    assert "1 of 35 passed" in (tmp_path / "reliability.md").read_text()
    kept = json.loads((tmp_path / "reliability.json").read_text())["checks"]
    assert list(kept) == ["R01", "R02", "R03"]
    assert (kept["R03"]["said"], kept["R01"]["commit"]) == ("1 failed in 1 s", "commit of old")
    assert sitting(["--table"], "old") == 0
    assert "1 of 35 passed" in (tmp_path / "reliability.md").read_text()
    assert row("R01")[0] == "passed"
    assert sitting([], "new") == 0
    assert "35 of 35 passed" in (tmp_path / "reliability.md").read_text()
    assert sitting([], "new", fails=["R01", "R02", "R03", "R04", "R05"]) == 1


def test_a_check_without_tests_has_failed():
    assert not scoreboard.run((), {"commit": "", "source": ""}).passed


def test_an_unknown_check_is_refused(sitting, capsys):
    with pytest.raises(SystemExit):
        sitting(["--only", "none"], "old")
    assert "'none'" in capsys.readouterr().err
