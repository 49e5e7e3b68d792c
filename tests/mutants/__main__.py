"""What share of planted bugs the tests notice: a seeded sample over the algorithm and the training.

    make mutants          # or: python -m tests.mutants [--count 60] [--seed 0]

Every bug is planted in a copy of the repository in a temporary folder, so that this one is never touched, whatever ends
the run. Cheap tests run first, and the first failure ends them; so does a limit of time, which counts as noticed.
Prints every survivor and the share; exit code 1 below the goal, 2 where the tests fail without any bug.
"""

import argparse
import contextlib
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.places import Mutant, sample

REPOSITORY = Path(__file__).parents[2]
MUTATED = ("src/nearstep/algorithm", "src/nearstep/training")
GOAL = 0.9
NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "runs", "dist", "__pycache__", "*.egg-info", ".hypothesis", ".*_cache"
)

# What runs after what: arguments of pytest. A change of the algorithm shows first in its own tests.
ALGORITHM = ("tests/algorithm",)
QUICK = ("tests/training", "tests/parity", "-k", "not learn")
WHOLE_RUNS = (
    "tests/trainer/test_trainer.py",
    "tests/scale",
    "tests/reward_modeling/test_objective.py",
    "tests/reports",
)
LEARNING = ("tests/training", "-k", "learn")
STAGES = (ALGORITHM, QUICK, WHOLE_RUNS, LEARNING)
PASSED, FAILED, BROKEN_TESTS = 0, 1, 2  # of pytest


@dataclass(frozen=True)
class Outcome:
    """What the tests said to a mutant: `noticed_by` is a test, a limit of time, or None for a survivor."""

    mutant: Mutant
    noticed_by: str | None
    seconds: float


class CannotMeasureError(Exception):
    """The tests fail, or cannot run, without any bug."""


def copy_of(repository: Path, folder: Path) -> Path:
    """The working tree without what is made from it."""
    return Path(shutil.copytree(repository, folder, ignore=NOT_COPIED))


def run_tests(tree: Path, arguments: Sequence[str], limit_seconds: float) -> str | None:
    """What noticed something, or None; raises CannotMeasureError where pytest cannot run such tests."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "--no-header", "--tb=no",
               "-W", "ignore", "--hypothesis-seed=0", *arguments]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        return f"the limit of {limit_seconds:.0f} s"
    finally:
        _end(process)
    if process.returncode == PASSED:
        return None
    if process.returncode in (FAILED, BROKEN_TESTS):
        return next((line.split(" - ")[0] for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))), "?")
    raise CannotMeasureError(f"pytest ended with {process.returncode} on {' '.join(arguments)}:\n{output[-2000:]}")


def _end(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started; workers of rewards may live on in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def limit_of(tree: Path, arguments: Sequence[str], limit_seconds: float) -> float:
    """Seconds that a stage may take with a bug: what it takes without, and much more."""
    began = time.monotonic()
    failure = run_tests(tree, arguments, limit_seconds)
    if failure is not None:
        raise CannotMeasureError(f"without any bug: {failure}")
    took = time.monotonic() - began
    print(f"{took:4.0f} s  without a bug: {' '.join(arguments)}", flush=True)
    return 60 + 4 * took


def stages_for(mutant: Mutant) -> list[int]:
    """Which stages matter, in order: the algorithm's own tests import nothing of the training."""
    return list(range(len(STAGES))) if "algorithm" in mutant.file.parts else list(range(1, len(STAGES)))


def attempt(tree: Path, mutant: Mutant, limits: Sequence[float]) -> Outcome:
    """Plant a bug in a copy, run the tests until one notices, and take it out again."""
    file, began = tree / mutant.file, time.monotonic()
    original = file.read_text(encoding="utf-8")
    replace_text(file, mutant.text)
    try:
        found = (run_tests(tree, STAGES[stage], limits[stage]) for stage in stages_for(mutant))
        noticed_by = next((name for name in found if name is not None), None)
    finally:
        replace_text(file, original)
    return Outcome(mutant, noticed_by, time.monotonic() - began)


def replace_text(file: Path, text: str) -> None:
    """Without its compiled form: that is told from a new one by size and whole seconds, and a mutant has both alike."""
    file.write_text(text, encoding="utf-8")
    for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
        compiled.unlink()


def try_all(mutants: Sequence[Mutant], folder: Path, jobs: int, limit_seconds: float) -> list[Outcome]:
    """All mutants, some at a time, each in a copy that no other uses meanwhile."""
    trees: queue.Queue[Path] = queue.Queue()
    for number in range(jobs):
        trees.put(copy_of(REPOSITORY, folder / f"copy-{number}"))

    @contextlib.contextmanager
    def free_tree() -> Iterator[Path]:
        tree = trees.get()
        try:
            yield tree
        finally:
            trees.put(tree)

    def without_bug(arguments: Sequence[str]) -> float:
        with free_tree() as tree:
            return limit_of(tree, arguments, limit_seconds)

    def with_bug(mutant: Mutant) -> Outcome:
        with free_tree() as tree:
            outcome = attempt(tree, mutant, limits)
        print(f"{outcome.seconds:4.0f} s  {outcome.noticed_by or 'SURVIVED'}\n{mutant}", flush=True)
        return outcome

    with ThreadPoolExecutor(jobs) as pool:
        limits = list(pool.map(without_bug, STAGES))
        return list(pool.map(with_bug, mutants))


def report(outcomes: Sequence[Outcome], goal: float) -> tuple[str, bool]:
    """Survivors with what was changed, the share that was noticed, and whether that reaches the goal."""
    survivors = [str(outcome.mutant) for outcome in outcomes if outcome.noticed_by is None]
    share = 1 - len(survivors) / len(outcomes)
    minutes = sum(outcome.seconds for outcome in outcomes) / 60
    noticed = f"noticed: {len(outcomes) - len(survivors)} of {len(outcomes)}, {share:.0%} (goal {goal:.0%})"
    return "\n".join([*survivors, f"{noticed}, {minutes:.0f} minutes of tests"]), share >= goal


def main(words: Sequence[str] | None = None) -> None:
    """Draw the sample, try it, print what survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="planted bugs")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="bugs tried at a time")
    parser.add_argument("--goal", type=float, default=GOAL, help="share that must be noticed")
    parser.add_argument("--limit_seconds", type=float, default=1200, help="of a stage of tests without a bug")
    parser.add_argument("--list", action="store_true", help="print the sample and run nothing")
    options = parser.parse_args(words)
    mutants = sample(REPOSITORY, MUTATED, options.count, options.seed)
    if options.list:
        print(*mutants, sep="\n")
        return
    with tempfile.TemporaryDirectory(prefix="nearstep-mutants-") as folder:
        try:
            outcomes = try_all(mutants, Path(folder), options.jobs, options.limit_seconds)
        except CannotMeasureError as error:
            print(error)
            raise SystemExit(2) from error
    text, reached = report(outcomes, options.goal)
    print(f"\n{text}")
    raise SystemExit(not reached)


if __name__ == "__main__":
    main()
