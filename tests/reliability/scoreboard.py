"""Which tests stand for which of the 35 checks of reliability, and how many pass: `make reliability`.

All of them take hours. `make reliability ARGS="--only R01 R03"` runs some, and what they find stands beside what
earlier sittings found; `ARGS=--table` writes the table anew. What only other code has passed is marked, not counted.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.harness.machine import machine, sentence

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"

# What is checked, and the tests that do it; none: it counts as failed.
CHECKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "R01": ("the same seed gives the same run", ("tests/trainer/test_trainer.py -k r01",)),
    "R02": ("a run resumed after any update has the same bits", ("tests/checkpoint/test_resume.py -k same_bits",)),
    "R03": ("epochs' ends and longer runs", ("tests/checkpoint/test_resume.py -k 'epoch or more_episodes'",)),
    "R04": ("no entry of a checkpoint is optional", ("tests/checkpoint/test_entries.py",)),
    "R05": ("another number of processes; other settings", (
        "tests/scale/test_two_processes.py -k r05", "tests/checkpoint/test_resume.py -k other_settings")),
    "R06": ("no split changes a weight", (
        "tests/training/test_update.py -k r06", "tests/scale/test_two_processes.py -k r06")),
    "R07": ("padding, packing and order change nothing", (
        "tests/models/test_forward.py", "tests/models/test_packing.py")),
    "R08": ("the first ratios are 1", ("tests/training/test_update.py -k r08",)),
    "R09": ("thirty kills at random moments", ("tests/checkpoint/test_signals.py -k kills",)),
    "R10": ("death at any file operation of a save", ("tests/checkpoint/test_faults.py -k death",)),
    "R11": ("damage to any file is found", ("tests/checkpoint/test_seal.py",)),
    "R12": ("a full disk", ("tests/checkpoint/test_faults.py -k 'disk or continue'",)),
    "R13": ("signals", ("tests/checkpoint/test_signals.py -k test_a_signal",)),
    "R14": ("retention keeps a healthy checkpoint", ("tests/checkpoint/test_faults.py -k 'push or kinds'",)),
    "R15": ("a rank that is killed or stopped", ("tests/scale/test_lost_ranks.py", "tests/scale/test_launcher.py")),
    "R16": ("an exception on one rank", ("tests/cli/test_launcher.py",)),
    "R17": ("what never answers", ("tests/common/test_waiting.py",)),
    "R18": ("numbers that are not finite", ("tests/training/test_update.py -k 'finite or broken'",)),
    "R19": ("whatever a reward returns", ("tests/rewards/test_values.py",)),
    "R20": ("degenerate batches", (
        "tests/training/test_update.py -k 'alike or without_actions'", "tests/training/test_experience.py")),
    "R21": ("a reward that fails", ("tests/rewards/test_failures.py",)),
    "R22": ("a reward that hangs or crashes", ("tests/rewards/test_workers.py",)),
    "R23": ("a reward server that misbehaves", ("tests/rewards/test_remote.py",)),
    "R24": ("bad rows are named", ("tests/data/test_bad_rows.py", "tests/data/test_bad_input.py")),
    "R25": ("broken files are named", ("tests/data/test_bad_input.py",)),
    "R26": ("special tokens of every kind", ("tests/training/test_experience.py -k r26",)),
    "R27": ("wrong configurations", ("tests/config/test_wrong_configurations.py",)),
    "R28": ("nothing is unpickled", (
        "tests/reliability/test_whole_runs.py -k r28", "tests/reliability/test_planted.py -k r28",
        "tests/models/test_trust.py -k 'pickle or damage'")),
    "R29": ("no code of others runs unasked", (
        "tests/reliability/test_planted.py -k r29", "tests/models/test_trust.py -k 'code or reward'")),
    "R30": ("the reward server", ("tests/rewards/server/test_app.py",)),
    "R31": ("secrets are shown nowhere", (
        "tests/reliability/test_whole_runs.py -k r31", "tests/reliability/test_secrets.py")),
    "R32": ("code that a model wrote", ("tests/rewards/test_sandbox.py", "tests/rewards/test_sandbox_verdict.py")),
    "R33": ("no connection leaves the machine", (
        "tests/reliability/test_whole_runs.py -k r33", "tests/reliability/test_network.py")),
    "R34": ("two thousand updates grow nothing", ("tests/reliability/test_whole_runs.py -k r34",)),
    "R35": ("planted bugs are noticed", ("tests/mutants/test_planted.py",)),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How a check ended, when, and on which code."""

    passed: bool
    seconds: float
    said: str
    when: str  # UTC
    commit: str
    source: str  # digest of nearstep's files: a commit of results alone leaves it as it is


def run(selectors: tuple[str, ...], facts: Mapping[str, object]) -> Result:
    """Run the tests of a check; one without tests has failed."""
    began, passed, said = time.monotonic(), bool(selectors), "no test"
    for selector in selectors:
        command = f"{sys.executable} -m pytest -n0 -m 'slow or not slow' --no-header --tb=line {selector}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        said = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1].strip("= ")
        if done.returncode != 0 or " passed" not in said:
            passed = False
            break
    when = datetime.now(UTC).isoformat(timespec="minutes")
    return Result(passed, time.monotonic() - began, said, when, str(facts["commit"]), str(facts["source"]))


def read_results(folder: Path) -> dict[str, Result]:
    """What earlier sittings have found, of checks that there still are."""
    path = folder / "reliability.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["checks"] if path.exists() else {}
    return {name: Result(**kept[name]) for name in CHECKS if name in kept}


def write_results(folder: Path, results: Mapping[str, Result], facts: Mapping[str, object]) -> None:
    """Everything that is known, for the next sitting and as a table."""
    kept = {"machine": dict(facts), "checks": {name: asdict(results[name]) for name in CHECKS if name in results}}
    (folder / "reliability.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (folder / "reliability.md").write_text(table(results, facts), encoding="utf-8")


def table(results: Mapping[str, Result], facts: Mapping[str, object]) -> str:
    """All checks in Markdown; those that ran on other code are marked, and do not count."""
    rows, passed = [], 0
    for name, (what, _) in CHECKS.items():
        result = results.get(name)
        if result is None:
            rows.append(f"| {name} | {what} | not run | | | |")
            continue
        here = result.source == facts["source"]
        passed += here and result.passed
        word = ("passed" if result.passed else "failed") + ("" if here else ", other code")
        rows.append(f"| {name} | {what} | {word} | {result.seconds:.0f} | {result.commit} | {result.when} |")
    return "\n".join([
        "# Reliability", "", f"By `make reliability`: {passed} of {len(CHECKS)} passed. {sentence(facts)}", "",
        "| id | check | result | seconds | commit | when |", "| --- | --- | --- | --- | --- | --- |", *rows, "",
    ])  # fmt: skip


def main(words: list[str] | None = None, folder: Path = RESULTS) -> int:
    """Run checks, print and write what they found; exit code 1 where fewer than the goal pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="ID", help="ids of checks; all if not given")
    parser.add_argument("--table", action="store_true", help="run nothing, write the table from what was found")
    parser.add_argument("--goal", type=int, default=31, help="checks that must pass")
    options = parser.parse_args(words)
    facts, results = machine(), read_results(folder)
    chosen = [] if options.table else options.only or list(CHECKS)
    for name in chosen:
        results[name] = run(CHECKS[name][1], facts)
        word = "passed" if results[name].passed else "FAILED"
        print(f"{name}  {word}  {results[name].seconds:5.0f} s  {CHECKS[name][0]}  ({results[name].said})", flush=True)
        write_results(folder, results, facts)  # whoever breaks it off keeps what was found
    write_results(folder, results, facts)
    passed = sum(results[name].passed for name in chosen)
    print(f"{passed} of {len(chosen)} passed" if chosen else table(results, facts))
    return 0 if passed >= min(options.goal, len(chosen)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
