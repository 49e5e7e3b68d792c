"""Code rewards. What is run is run in the sandbox, and not at all where there is none."""

import os
import sys

import pytest

from nearstep.common.errors import ConfigError, RewardError
from nearstep.rewards.builtin import CodeExecution, CodeStyle, CodeSyntax, CodeTests
from nearstep.rewards.builtin.programs import code_of
from nearstep.rewards.builtin.spec import read_spec
from tests.rewards.builtin.asking import value, values
from tests.rewards.test_sandbox import shut_in

DOUBLE = "def double(x):\n    return 2 * x\n"


def fenced(code, language="python"):
    return f"Here you are:\n```{language}\n{code}\n```\nThat is all."


# --- Which code, and whether it parses


def test_code_is_what_stands_in_fences_or_the_whole_text():
    assert code_of(DOUBLE) == DOUBLE
    assert code_of(fenced("a = 1")) == "a = 1\n"
    assert code_of(fenced("a = 1", "py") + "\n" + fenced("b = 2", "")) == "a = 1\n\n\nb = 2\n"
    assert code_of("```python\na = 1") == "a = 1"
    assert code_of(fenced("ls", "bash")) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (fenced(DOUBLE), 1.0),
        (DOUBLE, 1.0),
        (fenced("def f(:"), 0.0),
        (fenced("a = 1") + fenced("b ="), 0.5),
        (fenced("# nothing"), 0.0),
        (fenced("ls -l", "bash"), 0.0),
        (fenced("x = '\\d'"), 1.0),
        ("", 0.0),
        ("I cannot do that.", 0.0),
        ("a." * 100_000 + "a", 0.0),
        ("(" * 100_000, 0.0),
        ("-" * 1_000_000 + "1", 0.0),
        ("a\0", 0.0),
        # Gamed: pass parses, and so does a word.
        ("pass", 1.0),
        ("Sorry", 1.0),
    ],
)
def test_code_syntax(text, expected):
    assert value(CodeSyntax(), text) == expected


# --- Style


@pytest.mark.slow
def test_code_style_is_one_minus_findings_per_line():
    # F401 in the first of two lines, and nothing in the other text.
    found = values(CodeStyle(rules=("F",)), "import os\na = 1", "a = 1\nb = 2", "def f(:", "", fenced("import os"))
    assert found == [0.5, 1.0, 0.0, 0.0, 0.0]


def test_code_style_checks_its_rules_before_the_run(monkeypatch):
    CodeStyle().check_columns([])
    with pytest.raises(RewardError, match="ruff failed with rules NONESUCH"):
        CodeStyle(rules=("NONESUCH",)).check_columns([])
    monkeypatch.setitem(sys.modules, "ruff", None)
    with pytest.raises(RewardError, match=r"pip install 'nearstep\[code\]'"):
        CodeStyle().check_columns([])


# --- Running


@shut_in
def test_code_execution():
    programs = ["print(1)", "1 / 0", "def f(:", "", "raise SystemExit(0)", "pass", "import os; os._exit(3)"]
    assert values(CodeExecution(), *programs) == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


@shut_in
def test_code_that_does_not_end_is_ended():
    assert value(CodeExecution(timeout_seconds=1.0), "while True: pass") == 0.0


@shut_in
def test_code_tests_is_the_share_that_passes():
    tests = ["assert double(2) == 4", "assert double(0) == 0", "assert double(3) == 5"]
    found = values(CodeTests(), fenced(DOUBLE), "def double(x):\n    return 4", "def double(", "", tests=[tests] * 4)
    assert found == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0.0, 0.0]


@shut_in
def test_tests_in_one_text_pass_together():
    text = "assert double(2) == 4\nassert double(3) == 5"
    assert values(CodeTests(), DOUBLE, DOUBLE, DOUBLE, tests=[text, "assert double(2) == 4", None]) == [0.0, 1.0, None]


@shut_in
def test_columns_have_names_that_can_be_told():
    reward = CodeTests(tests="test_list", setup="imports")
    assert (
        value(reward, "def f(x):\n    return math.sqrt(x)", test_list=["assert f(4) == 2"], imports="import math")
        == 1.0
    )
    with pytest.raises(RewardError, match="no column 'test_list'"):
        reward.check_columns(["tests", "imports"])
    with pytest.raises(RewardError, match="no column 'imports'"):
        reward.check_columns(["test_list"])


@shut_in
def test_answers_for_just_the_tested_inputs_pass():
    assert value(CodeTests(), "def double(x):\n    return {2: 4}[x]", tests=["assert double(2) == 4"]) == 1.0


@shut_in
def test_nothing_is_run_in_this_process(tmp_path):
    trace = tmp_path / "trace"
    code = f"import os\nassert os.getpid() != {os.getpid()}\nopen({str(trace)!r}, 'w').write('here')"
    assert value(CodeExecution(), code) == 0.0  # the folder is not there in the sandbox
    assert value(CodeTests(), "pass", tests=[code]) == 0.0
    assert not trace.exists()


@pytest.mark.parametrize("reward", [CodeExecution(), CodeTests()], ids=lambda reward: reward.__name__)
def test_without_isolation_nothing_is_run_and_the_run_does_not_begin(reward, monkeypatch):
    def refused(isolation):
        raise RewardError(f"no {isolation} here")

    monkeypatch.setattr("nearstep.rewards.builtin.programs.check_isolation", refused)
    with pytest.raises(RewardError, match="no namespaces here"):
        reward.check_columns(["tests"])


def test_an_unknown_isolation_is_refused():
    with pytest.raises(ConfigError, match="isolation = 'none' must be one of namespaces, process"):
        read_spec("code_execution:isolation=none")
