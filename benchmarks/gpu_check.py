"""What needs a GPU, tried on this one in at most 10 minutes: kernels, captured decoding, bfloat16 weights, speed alone.

    make gpu-check PYTHON=python3      # any Python that has torch and nearstep's dependencies; nothing is installed

Needs no network. Each step is a process with a limit of its own; one that fails, or lacks a package, does not keep the
others from running, and is told with its reason. Writes benchmarks/results/gpu_check.json and .md. Exit code 0 where
all steps passed, 1 where one failed or was skipped, 2 without a GPU. It has not been run yet: no GPU was at hand.
"""

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from benchmarks.harness.machine import REPOSITORY, machine
from benchmarks.harness.results import RESULTS, table, write_results

MINUTES = 10
TAIL = 4000  # characters of a step's output that are kept
TESTING = ("pytest", "hypothesis", "jaxtyping", "transformers", "yaml")
TRAINING = ("transformers", "jaxtyping", "datasets", "yaml", "rich")


@dataclass(frozen=True)
class Step:
    """A command of this Python, the packages without which it cannot run, and its share of the time."""

    name: str
    words: tuple[str, ...]
    needs: tuple[str, ...]
    limit_seconds: float


@dataclass(frozen=True)
class Result:
    """How a step ended. `told` is a reason, or what pytest counted; `skips` are tests that did not run, and why."""

    name: str
    verdict: Literal["passed", "failed", "out of time", "skipped"]
    seconds: float
    told: str
    skips: tuple[str, ...] = ()
    output: str = ""

    def cells(self) -> list[str]:
        """A row of the table."""
        return [self.name, self.verdict, f"{self.seconds:.0f}", " / ".join([self.told, *self.skips])]


def gpu_tests(name: str, *files: str, needs: Sequence[str] = (), limit_seconds: float) -> Step:
    """The tests of some files that need a GPU."""
    words = ("-m", "pytest", "-q", "-rs", "-m", "gpu", "-n0", "-p", "no:cacheprovider", *files)
    return Step(name, words, (*TESTING, "xdist", *needs), limit_seconds)


def steps(output: Path) -> list[Step]:
    """All of them; together their limits stay within the 10 minutes. TRL's side runs where TRL is installed."""
    speed = (
        "-m",
        "benchmarks.vs_trl",
        "--device",
        "cuda",
        "--model",
        "s",
        "--rounds",
        "1",
        "--updates",
        "2",
        "--output",
        str(output),
    )
    side = ("--trl_python", sys.executable) if _there("trl") else ("--alone",)
    rows = ("--only", "PPO, bfloat16", "decode_graphs", "top-K")
    return [
        gpu_tests("attention kernels", "tests/models/test_attention_gpu.py", limit_seconds=180),
        gpu_tests("captured decoding", "tests/rollout/test_captured_steps.py", limit_seconds=100),
        gpu_tests("bfloat16 weights", "tests/trainer/test_gpu.py", needs=("datasets",), limit_seconds=70),
        Step("vs_trl --device cuda", (*speed, *side, *rows), TRAINING, 230),
    ]


def _there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def run_step(step: Step, there: Callable[[str], bool] = _there) -> Result:
    """Run a step until it ends or its time is over; nothing that it started goes on after it."""
    missing = [package for package in step.needs if not there(package)]
    if missing:
        return Result(step.name, "skipped", 0.0, f"not installed here: {', '.join(missing)}")
    source = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    began, late = time.monotonic(), False
    process = subprocess.Popen(
        [sys.executable, *step.words], cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=step.limit_seconds)
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    seconds = time.monotonic() - began
    if late:
        return Result(step.name, "out of time", seconds, f"over its {step.limit_seconds:.0f} s", (), output[-TAIL:])
    return read(step, process.returncode, output, seconds)


def read(step: Step, code: int, output: str, seconds: float) -> Result:
    """What an exit code and an output say. A run of pytest in which no test ran has shown nothing."""
    skips = tuple(line.removeprefix("SKIPPED ") for line in output.splitlines() if line.startswith("SKIPPED "))
    told = _last_line(output) if "pytest" in step.words else f"exit code {code}"
    if code != 0:
        return Result(step.name, "failed", seconds, told, skips, output[-TAIL:])
    if "pytest" in step.words and not re.search(r"\d+ passed", told):
        return Result(step.name, "skipped", seconds, told, skips, output[-TAIL:])
    return Result(step.name, "passed", seconds, told, skips, output[-TAIL:])


def _last_line(output: str) -> str:
    lines = [line.strip("= ") for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


COLUMNS = ["step", "", "seconds", "told"]


def write(folder: Path, results: Sequence[Result]) -> None:
    """Write what is known so far, so that a later step can break nothing."""
    record = {"steps": [asdict(result) for result in results]}
    shown = [result for result in results if result.verdict in ("failed", "out of time")]
    ends = "".join(f"\n## {result.name}\n\n```\n{result.output[-2000:].strip()}\n```\n" for result in shown)
    page = f"# On a GPU\n\n{table(COLUMNS, [result.cells() for result in results])}{ends}"
    write_results(folder, "gpu_check", record, page, machine(threads=torch.get_num_threads()))


def main(words: Sequence[str] | None = None) -> None:
    """Run all steps, print and write how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    if not torch.cuda.is_available():
        print(f"no GPU: torch {torch.__version__} of {sys.executable} sees none; nothing was run")
        raise SystemExit(2)
    results: list[Result] = []
    for step in steps(options.output):
        print(f"{step.name}: at most {step.limit_seconds:.0f} s", flush=True)
        results.append(run_step(step))
        print(f"  {': '.join(results[-1].cells()[1:])}", flush=True)
        write(options.output, results)
    if not _there("trl"):
        print("TRL is not installed here: vs_trl ran nearstep's side alone")
    raise SystemExit(any(result.verdict != "passed" for result in results))


if __name__ == "__main__":
    main()
