"""What each technique of the update brings: seconds and memory of one epoch of policy and value, gradients compared.

    python -m benchmarks.ladder [--model m] [--dtype bfloat16]

Every step runs in a process of its own, on the same rows and weights, with one thread. Seconds are CPU seconds of the
second of two passes, memory is what it needs above weights and gradients, and the gap is that of all gradients to those
of TRL's layout, relative to their norm.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.harness.layouts import LADDER, Networks, rows_of
from benchmarks.harness.machine import REPOSITORY, add_device, at_least_one, check_device, machine
from benchmarks.harness.meter import Meter, memory_of
from benchmarks.harness.results import MIB, RESULTS, table, write_results
from benchmarks.harness.workload import SIZES, Workload

COLUMNS = ["step", "seconds", "of step 0", "extra MiB", "of step 0", "gradient gap"]


@dataclass(frozen=True)
class Rung:
    """What one step of the ladder takes."""

    seconds: float
    extra_mib: float
    gradient_gap: float


def measure(step: str, workload: Workload, gradients: Path) -> dict[str, float]:
    """Two passes of one step in this process; the gradients of the first are kept in a file."""
    torch.set_num_threads(1)
    networks, rows = Networks.of(workload), rows_of(workload)
    LADDER[step](networks, workload, rows)
    torch.save(networks.gradients().cpu(), gradients)
    for network in (networks.policy, networks.critic):
        network.zero_grad(set_to_none=False)
    meter = Meter(memory_of(workload.device), workload.device)
    meter.start()
    with meter("update"):
        LADDER[step](networks, workload, rows)
    meter.mark(None)
    spent = meter.updates[0]["update"]
    seconds = spent.cpu_seconds if workload.device == "cpu" else spent.wall_seconds
    return {"seconds": seconds, "extra_mib": (spent.peak_bytes - meter.weights_bytes) / MIB}


def climb(workload: Workload) -> dict[str, Rung]:
    """All steps, each in a process of its own."""
    rungs: dict[str, Rung] = {}
    with tempfile.TemporaryDirectory() as folder:
        for step in LADDER:
            files = {name: Path(folder) / f"{step[:2].strip()}.{name}" for name in ("json", "pt")}
            given = {"--step": step, "--workload": json.dumps(asdict(workload)), "--record": str(files["json"]),
                     "--gradients": str(files["pt"])}  # fmt: skip
            command = [sys.executable, "-m", "benchmarks.ladder", *(word for pair in given.items() for word in pair)]
            subprocess.run(command, check=True, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"})
            first, own = torch.load(Path(folder) / "0.pt"), torch.load(files["pt"])
            gap = float((own - first).norm() / first.norm())
            rungs[step] = Rung(**json.loads(files["json"].read_text()), gradient_gap=gap)
            print(f"{step}: {rungs[step].seconds:.2f} s", flush=True)
    return rungs


def cells(step: str, rung: Rung, first: Rung) -> list[str]:
    """A line of the table."""
    ratios = rung.seconds / first.seconds, rung.extra_mib / first.extra_mib
    return [step, f"{rung.seconds:.2f}", f"{ratios[0]:.2f}", f"{rung.extra_mib:,.0f}", f"{ratios[1]:.2f}",
            f"{rung.gradient_gap:.0e}"]  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    """Climb the ladder and write it to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", choices=list(SIZES), default="s", help="s: 10 M weights, m: 60 M, l: 1.2 B; tiny is for tests"
    )
    parser.add_argument("--rows", type=at_least_one, default=32, help="a multiple of --samples")
    parser.add_argument(
        "--samples", type=at_least_one, default=1, help="responses to each prompt; more than one share it"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    add_device(parser)
    parser.add_argument("--output", type=Path, default=RESULTS)
    for hidden in ("--step", "--workload", "--record", "--gradients"):  # of the processes that this one starts
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.step is not None:
        spent = measure(options.step, Workload(**json.loads(options.workload)), Path(options.gradients))
        Path(options.record).write_text(json.dumps(spent))
        return
    check_device(parser, options.device)
    if options.rows % options.samples:
        parser.error(f"--rows {options.rows} is no multiple of --samples {options.samples}")
    workload = Workload(
        "ladder", "ppo", model=options.model, rows=options.rows, generations=options.samples, dtype=options.dtype,
        device=options.device,
    )  # fmt: skip
    write(options.output, workload, climb(workload))


def write(folder: Path, workload: Workload, rungs: dict[str, Rung]) -> None:
    """Print the table, write it as JSON and Markdown."""
    rows = [cells(step, rung, rungs["0 TRL's layout"]) for step, rung in rungs.items()]
    about = f"{workload.model}, {workload.rows} rows, {workload.generations} to a prompt, {workload.dtype}"
    shown = Table(*COLUMNS, title=f"one epoch of policy and value: {about}")
    for row in rows:
        shown.add_row(*row)
    Console(width=120).print(shown)
    name = f"ladder_{workload.model}_{workload.dtype}_{workload.generations}_{workload.device}"
    record = {"workload": asdict(workload), "steps": {step: asdict(rung) for step, rung in rungs.items()}}
    write_results(folder, name, record, table(COLUMNS, rows), machine())


if __name__ == "__main__":
    main()
