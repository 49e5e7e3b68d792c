"""nearstep against TRL 1.8.0 on the same models, prompts and response lengths: time, memory, and the machine's floor.

    python -m benchmarks.vs_trl                  # 10 M weights, and the floor with 60 M: about 25 minutes
    python -m benchmarks.vs_trl --full           # all rows with 60 M weights besides: some hours
    python -m benchmarks.vs_trl --alone          # nearstep only, against the floor; needs no TRL and no network
    python -m benchmarks.vs_trl --device cuda    # 1.2 B weights in bfloat16; has not been run yet

TRL lives in an environment of its own (made if a row needs it and the folder is not there; needs a package index).
Both systems run in turn, A B A B, each time in a fresh process with one thread; the numbers are medians. CPU seconds
are what ratios are made of, since they hardly move when others use the machine; wall seconds are told besides. See
benchmarks/README.md for what is held equal and what is not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from tests.parity.record.make import environment

from benchmarks.harness.floor import Floor, Lengths, Rates, floor
from benchmarks.harness.machine import REPOSITORY, add_device, at_least_one, check_device, machine
from benchmarks.harness.plot import plot
from benchmarks.harness.results import (
    COLUMNS,
    RESULTS,
    Bars,
    Line,
    Side,
    floor_lines,
    lines_of,
    markdown,
    side_of,
    write_results,
)
from benchmarks.harness.workload import SIZES, Workload

TRL_VERSION: Final = "TRL 1.8.0"
ROWS = {"tiny": 8, "s": 32, "m": 16, "l": 64}
MULTIPLE = 8  # rows are whole groups of 8 samples, and whole micro-batches


@dataclass(frozen=True)
class Row:
    """A piece of work, what it is compared with, and the bars."""

    work: str
    ours: Workload
    bars: Bars
    against: Literal["TRL 1.8.0", "separate critic", "floor"] = TRL_VERSION
    processes: int = 1  # of nearstep alone in each round, if it is held against its floor

    @property
    def theirs(self) -> Workload:
        """What the other side runs, if there is one."""
        return self.ours if self.against == TRL_VERSION else replace(self.ours, shared_trunk=False)


def rows(model: str, device: str, dtype: str) -> list[Row]:
    """The table of the bars at one size. On a GPU all is bfloat16."""
    base = Workload("", "ppo", model=model, rows=ROWS[model], device=device, dtype=dtype)
    groups = replace(base, kind="dppo", generations=8, trust_region="binary_tv")
    long = replace(base, shortest_prompt=256, longest_prompt=256, generations=8)
    long_groups = replace(groups, shortest_prompt=256, longest_prompt=256)
    chosen = [
        Row(f"PPO, {dtype}", base, Bars(time=0.30, memory=0.25)),
        Row("rollout alone", replace(base, kind="rollout", updates=3), Bars(time=0.5)),
        Row("DPPO binary TV", groups, Bars(time=0.30)),
        Row("DPPO top-K TV", replace(groups, trust_region="topk_tv"), Bars(time=0.30)),
        Row("PPO, 8 samples of 256-token prompts", long, Bars(time=0.20)),
        Row("DPPO, 8 samples of 256-token prompts", long_groups, Bars()),
    ]
    shared = replace(base, shared_trunk=True)
    chosen.append(Row("PPO, critic on a shared trunk", shared, Bars(update=0.6), against="separate critic"))
    if device == "cuda":
        graphed = replace(base, kind="rollout", updates=3, decode_graphs=True)
        chosen.insert(2, Row("rollout alone, decode_graphs", graphed, Bars()))
    if device == "cpu":
        chosen.insert(1, Row("PPO, bfloat16", replace(base, dtype="bfloat16"), Bars(time=0.38)))
    return [replace(row, work=f"{model}: {row.work}") for row in chosen]


def alone(row: Row, processes: int = 1) -> Row:
    """The same work by nearstep only, against the floor and without a bar."""
    return replace(row, work=f"{row.work}, alone", bars=Bars(), against="floor", processes=processes)


# The rates of a shared machine change from minute to minute, so one process says little about a ratio to the floor.
TO_FLOOR = [alone(rows(model, "cpu", "float32")[0], processes) for model, processes in (("s", 3), ("m", 1))]


def resized(row: Row, episodes: int | None, updates: int) -> Row:
    """A row with other numbers of episodes and of updates in a process."""
    work = row.ours
    return replace(row, ours=replace(work, rows=episodes or work.rows, updates=max(updates, work.updates)))


@dataclass
class Measurements:
    """The records of all processes so far."""

    trl_python: Path
    records: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    def measure(self, row: Row) -> None:
        """One process of each side, the other's first."""
        sides = self.records.setdefault(row.work, {"theirs": [], "ours": []})
        if row.against == "floor":
            for _ in range(row.processes):
                sides["ours"].append(run_process("nearstep_side", Path(sys.executable), row.ours))
            return
        other = ("trl_side", self.trl_python) if row.against == TRL_VERSION else ("nearstep_side", Path(sys.executable))
        sides["theirs"].append(run_process(*other, row.theirs))
        sides["ours"].append(run_process("nearstep_side", Path(sys.executable), row.ours))

    def ours(self, row: Row) -> tuple[Side, Floor]:
        """Medians of nearstep, and the floor at the rates measured beside it."""
        records = self.records[row.work]
        rates = [Rates(**record["rates"]) for record in records["ours"]]
        usual = Rates(median(r.matrix_flops for r in rates), median(r.memory_bytes for r in rates))
        return side_of(records["ours"], clock_of(row)), floor(row.ours, usual)

    def sides(self, row: Row) -> tuple[Side, Side, Floor]:
        """Medians of both sides, and the floor."""
        return side_of(self.records[row.work]["theirs"], clock_of(row)), *self.ours(row)

    def lines(self, row: Row) -> list[Line]:
        """What the table shows of a row."""
        if row.against == "floor":
            ours, least = self.ours(row)
            return floor_lines(row.work, ours, least)
        theirs, ours, least = self.sides(row)
        tokens = Lengths.of(row.ours)
        counted = tokens.actions if row.ours.kind == "rollout" else tokens.rows_tokens
        return lines_of(row.work, row.against, theirs, ours, row.bars, least, counted)


def clock_of(row: Row) -> str:
    """What ratios are made of: CPU seconds hardly move when others use the machine."""
    return "cpu_seconds" if row.ours.device == "cpu" else "wall_seconds"


def run_process(side: str, python: Path, workload: Workload) -> dict[str, Any]:
    """Run a workload in a fresh process; raises SystemExit with the end of its output where it fails."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if workload.device == "cpu" else {}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "record.json"
        command = [str(python), "-m", f"benchmarks.harness.{side}", "--workload", json.dumps(asdict(workload)),
                   "--output", str(output)]  # fmt: skip
        done = subprocess.run(
            command, cwd=REPOSITORY, env={**os.environ, **quiet, **one_thread}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{side} failed on {workload}:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        record: dict[str, Any] = json.loads(output.read_text())
    return record


def write(folder: Path, name: str, chosen: list[Row], found: Measurements) -> list[Line]:
    """JSON, tables and, where two sides were compared, a picture of what was measured so far; returns the lines."""
    done = [row for row in chosen if row.work in found.records]
    lines = [line for row in done for line in found.lines(row)]
    barred = [line for line in lines if line.bar is not None]
    facts = machine()
    record = {"workloads": {row.work: asdict(row.ours) for row in done}, "records": found.records,
              "lines": [asdict(line) | {"ratio": line.ratio, "holds": line.holds} for line in lines]}  # fmt: skip
    counts = ", ".join(f"{row.work}: {len(found.records[row.work]['ours'])}" for row in done)
    compared = {row.work: found.sides(row) for row in done if row.against != "floor"}
    title = f"nearstep against {TRL_VERSION}" if compared else "nearstep alone"
    head = f"# {title}\n\nProcesses of each side: {counts}.\n"
    judged = f"\n## Bars\n\n{markdown(barred)}" if barred else ""
    write_results(folder, name, record, f"{head}{judged}\n## Everything\n\n{markdown(lines)}", facts)
    if compared:
        plot(compared, folder / f"{name}.png")
    return lines


def new_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=REPOSITORY / "runs" / "trl-env", help="TRL's environment")
    parser.add_argument("--trl_python", type=Path, help="a Python that has TRL already, instead of --venv")
    add_device(parser)
    parser.add_argument("--model", choices=list(SIZES), help="s on a CPU, l on a GPU unless given; tiny is for tests")
    parser.add_argument("--alone", action="store_true", help="nearstep only, against the floor: no TRL is needed")
    parser.add_argument("--full", action="store_true", help="also the larger model")
    parser.add_argument("--rounds", type=at_least_one, default=2, help="times A B")
    parser.add_argument("--minutes", type=float, default=20.0, help="no further round of a row begins after this")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="rows whose name has one of these texts")
    parser.add_argument("--rows", type=at_least_one, help="episodes of an update, a multiple of 8")
    parser.add_argument(
        "--updates", type=at_least_one, default=1, help="in each process; of several the first is a warm-up"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser


def chosen_rows(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[Row]:
    """The rows that the options ask for; ends with one line where they contradict one another."""
    check_device(parser, options.device)
    if options.rows is not None and options.rows % MULTIPLE:
        parser.error(f"--rows {options.rows} is no multiple of {MULTIPLE}: rows are whole groups of {MULTIPLE} samples")
    if options.full and (options.model or options.device == "cuda"):
        parser.error("--full adds the larger model on a CPU: leave --model and --device cuda out")
    usual = ["l"] if options.device == "cuda" else ["s", "m"] if options.full else ["s"]
    models = [options.model] if options.model else usual
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    chosen = [row for model in models for row in rows(model, options.device, dtype)]
    if options.alone:
        chosen = [alone(row) for row in chosen]
    elif models == ["s"] and options.device == "cpu":
        chosen[1:1] = TO_FLOOR
    named = [row for row in chosen if not options.only or any(text in row.work for text in options.only)]
    if not named:
        parser.error(f"--only {' '.join(options.only)}: no row is named so. There are {[row.work for row in chosen]}")
    return [resized(row, options.rows, options.updates) for row in named]


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print the bars, write everything."""
    parser = new_parser()
    options = parser.parse_args(words)
    chosen = chosen_rows(parser, options)
    needs_trl = any(row.against == TRL_VERSION for row in chosen)
    trl_python = options.trl_python or (environment(options.venv) if needs_trl else Path(sys.executable))
    ends = time.monotonic() + 60 * options.minutes
    found = Measurements(trl_python)
    name = f"vs_trl_{options.device}{'_alone' if options.alone else ''}"
    lines: list[Line] = []
    for number in range(options.rounds):
        for row in chosen:
            if number > 0 and not options.full and time.monotonic() > ends:
                continue
            print(f"round {number + 1}: {row.work}", flush=True)
            found.measure(row)
            lines = write(options.output, name, chosen, found)
    shown = Table(*COLUMNS)
    for line in [line for line in lines if line.bar is not None] or lines:
        shown.add_row(*line.cells())
    Console(width=160).print(shown)


if __name__ == "__main__":
    main()
