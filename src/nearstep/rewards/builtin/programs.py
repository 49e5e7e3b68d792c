"""Rewards for Python code: that it parses, is well styled, runs, and passes tests. Nothing is run in this process."""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nearstep.common.errors import RewardError, shorten
from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Cell, Values, read_texts
from nearstep.rewards.builtin.metadata import BuiltIn, Metadata, TextReward, column_name
from nearstep.rewards.builtin.text import share, texts_of
from nearstep.rewards.sandbox.run import ProgramOutcome, check_isolation, run_python

_FENCE = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "py", "python3")
ISOLATION = "namespaces, or process for no protection: your files and network are open to it then"


@dataclass(frozen=True)
class CodeSyntax(TextReward):
    """The share of Python code fences that parse and hold a statement; without fences, the whole text is the code."""

    __name__ = "code_syntax"
    metadata = Metadata(gaming="pass parses, and so does any single word: see code_tests.")

    def value(self, text: str) -> float:
        return share(_parses(block) for block in _blocks(text))


@dataclass(frozen=True)
class CodeStyle(BuiltIn):
    """1 minus the findings of ruff per line of code, at least 0; code that does not parse is worth 0."""

    __name__ = "code_style"
    metadata = Metadata(
        gaming="Many harmless lines thin the findings out; what the code does is not seen.",
        package="ruff",
        extra="code",
    )
    rules: tuple[str, ...] = option(("E", "F", "W", "B", "C4", "SIM", "N"), "ruff rules to check")

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if ruff is not installed or knows one of the rules not."""
        super().check_columns(columns)
        self._findings(["pass\n"])

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        self.need_package()
        programs = [code_of(text) for text in texts_of(completions)]
        findings = self._findings(programs)
        lines = [sum(bool(line.strip()) for line in program.splitlines()) for program in programs]
        return [
            max(0.0, 1 - findings[row] / lines[row]) if _parses(program) else 0.0
            for row, program in enumerate(programs)
        ]

    def _findings(self, programs: Sequence[str]) -> Counter[int]:
        """How many findings there are in each program; one run of ruff for all."""
        with tempfile.TemporaryDirectory(prefix="nearstep-style-") as folder:
            for row, program in enumerate(programs):
                Path(folder, f"program_{row}.py").write_text(program + "\n", encoding="utf-8", errors="replace")
            command = ["check", "--isolated", "--no-cache", "--exit-zero", "--output-format=json"]
            run = subprocess.run(
                [sys.executable, "-m", "ruff", *command, f"--select={','.join(self.rules)}", "."],
                cwd=folder,
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
            )
        if run.returncode != 0:
            raise RewardError(f"code_style: ruff failed with rules {','.join(self.rules)}: {shorten(run.stderr)}")
        return Counter(
            int(Path(finding["filename"]).stem.removeprefix("program_")) for finding in json.loads(run.stdout)
        )


class _RunsCode(BuiltIn):
    """A reward that runs code of a model in the sandbox, within its limits."""

    timeout_seconds: float
    memory_bytes: int
    isolation: Literal["namespaces", "process"]

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if a column is not there, or code cannot be isolated here."""
        super().check_columns(columns)
        check_isolation(self.isolation)

    def run(self, program: str, tests: Sequence[str] = (), setup: str = "") -> ProgramOutcome:
        """How the program and its tests end."""
        return run_python(
            program,
            tests,
            setup=setup,
            timeout_seconds=self.timeout_seconds,
            memory_bytes=self.memory_bytes,
            isolation=self.isolation,
        )


@dataclass(frozen=True)
class CodeExecution(_RunsCode):
    """1 if the code runs to its end without an error, in the sandbox and within its limits, else 0."""

    __name__ = "code_execution"
    metadata = Metadata(
        gaming="pass runs, and so does code whose errors are all caught: see code_tests.",
        needs="a sandbox (bubblewrap, on Linux)",
    )
    timeout_seconds: float = option(10.0, "longest run", above=0)
    memory_bytes: int = option(1 << 30, "most memory", above=0)
    isolation: Literal["namespaces", "process"] = option("namespaces", ISOLATION)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        programs = [code_of(text) for text in texts_of(completions)]
        can_run = [_parses(program) for program in programs]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._worth, programs, can_run))

    def _worth(self, program: str, can_run: bool) -> float:
        return float(can_run and self.run(program).ending == "done")


@dataclass(frozen=True)
class CodeTests(_RunsCode):
    """The share of tests that pass after the code has run, in the sandbox and within its limits.

    A test is Python that raises where it fails, such as an assert: MBPP's test_list, or one text with all of them. It
    runs apart from the code and asks it for the names that test and setup lack. A row without tests gives None.
    """

    __name__ = "code_tests"
    metadata = Metadata(
        gaming="Answers for just the tested inputs; what a test only asks the code about itself.",
        needs="column tests; a sandbox (bubblewrap, on Linux)",
    )
    tests: str = column_name("tests", "column with the tests: a text, or a list of texts of which each counts")
    setup: str | None = column_name(None, "column with code that runs before both code and tests, such as imports")
    timeout_seconds: float = option(10.0, "longest run of the code and all its tests", above=0)
    memory_bytes: int = option(1 << 30, "most memory", above=0)
    isolation: Literal["namespaces", "process"] = option("namespaces", ISOLATION)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        programs = [code_of(text) for text in texts_of(completions)]
        tests = read_texts(self.__name__, self.tests, columns)
        setups: list[Cell] = [None] * len(programs)
        if self.setup is not None:
            setups = read_texts(self.__name__, self.setup, columns)
        can_run = [_parses(program) for program in programs]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._share, programs, can_run, setups, tests))

    def _share(self, program: str, can_run: bool, setup: Cell, tests: Cell) -> float | None:
        if tests is None:
            return None
        if not can_run:
            return 0.0
        return share(self.run(program, tests, "\n".join(setup or ())).passed)


def code_of(text: str) -> str:
    """The Python code in a text: its fences one after another, or without fences all of it."""
    return "\n\n".join(_blocks(text))


def _blocks(text: str) -> list[str]:
    fences = _FENCE.findall(text)
    blocks = [code for language, code in fences if language.lower() in _PYTHON] if fences else [text]
    return [block for block in blocks if block.strip()]


def _parses(program: str) -> bool:
    """Whether a program is Python with at least one statement; it is not compiled, let alone run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about code that is not ours
        try:
            return bool(ast.parse(program).body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):  # the parser gives up on deep nesting so
            return False
