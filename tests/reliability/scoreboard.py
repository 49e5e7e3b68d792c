"""Which tests stand for which of the 35 checks of reliability, and how many pass: `make reliability`."""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.machine import machine, sentence

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "reliability.md"

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
    "R13": ("signals", ("tests/checkpoint/test_signals.py -k signal",)),
    "R14": ("retention keeps a healthy checkpoint", ("tests/checkpoint/test_faults.py -k 'push or kinds'",)),
    "R15": ("a rank that is killed or stopped", ()),
    "R16": ("an exception on one rank", ("tests/cli/test_launcher.py",)),
    "R17": ("what never answers", ()),
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
    "R35": ("planted bugs are noticed", ()),
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """How a check ended."""

    passed: bool
    seconds: float
    said: str


def run(selectors: tuple[str, ...]) -> Result:
    """Run the tests of a check; one without tests has failed."""
    began = time.monotonic()
    if not selectors:
        return Result(False, 0.0, "no test")
    for selector in selectors:
        command = f"{sys.executable} -m pytest -n0 -m 'slow or not slow' --no-header --tb=line {selector}"
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
        if done.returncode != 0 or " passed" not in last:
            return Result(False, time.monotonic() - began, last)
    return Result(True, time.monotonic() - began, last)


def main() -> int:
    """Run all checks, print and write the table; exit code 1 where fewer than the goal pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="ids of checks, all if not given; then nothing is written")
    parser.add_argument("--goal", type=int, default=31, help="checks that must pass")
    options = parser.parse_args()
    chosen = options.only or list(CHECKS)
    results = {}
    for name in chosen:
        results[name] = run(CHECKS[name][1])
        word = "passed" if results[name].passed else "FAILED"
        print(f"{name}  {word}  {results[name].seconds:5.0f} s  {CHECKS[name][0]}  ({results[name].said})", flush=True)
    passed = sum(result.passed for result in results.values())
    print(f"{passed} of {len(chosen)} passed")
    if not options.only:
        rows = [
            f"| {name} | {CHECKS[name][0]} | {'passed' if result.passed else 'failed'} | {result.seconds:.0f} |"
            for name, result in results.items()
        ]
        text = [
            "# Reliability", "", f"By `make reliability`: {passed} of {len(chosen)} passed. {sentence(machine())}", "",
            "| id | check | result | seconds |", "| --- | --- | --- | --- |", *rows, "",
        ]  # fmt: skip
        RESULTS.write_text("\n".join(text), encoding="utf-8")
    return 0 if passed >= min(options.goal, len(chosen)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
