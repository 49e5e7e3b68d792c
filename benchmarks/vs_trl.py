"""nearstep against TRL 1.8.0 on the same models, prompts and response lengths: time, memory, and the machine's floor.

    python -m benchmarks.vs_trl                  # 10 M weights, and the floor with 60 M: about 25 minutes
    python -m benchmarks.vs_trl --full           # all rows with 60 M weights besides: some hours
    python -m benchmarks.vs_trl --device cuda    # 1.2 B weights in bfloat16

TRL lives in an environment of its own (made if the folder is not there; needs a package index). Both systems run in
turn, A B A B, each time in a fresh process with one thread; the numbers are medians. CPU seconds are what ratios are
made of, since they hardly move when others use the machine; wall seconds are told besides. See benchmarks/README.md
for what is held equal and what is not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from tests.parity.record.make import environment

from benchmarks.harness.floor import Floor, Lengths, Rates, floor
from benchmarks.harness.plot import plot
from benchmarks.harness.results import COLUMNS, Bars, Line, Side, floor_lines, lines_of, markdown, side_of
from benchmarks.harness.workload import Workload

REPOSITORY = Path(__file__).parents[1]
TRL_VERSION: Final = "TRL 1.8.0"
ROWS = {"s": 32, "m": 16, "l": 64}


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
        Row(f"PPO, {dtype}", base, Bars(time=0.38, memory=0.35)),
        Row("rollout alone", replace(base, kind="rollout", updates=3), Bars(time=0.5)),
        Row("DPPO binary TV", groups, Bars(time=0.4)),
        Row("DPPO top-K TV", replace(groups, trust_region="topk_tv"), Bars(time=0.4)),
        Row("PPO, 8 samples of 256-token prompts", long, Bars(time=0.17)),
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


# The rates of a shared machine change from minute to minute, so one process says little about a ratio to the floor.
TO_FLOOR = [
    Row(f"{model}: PPO, float32, alone", Workload("", "ppo", model=model, rows=ROWS[model]), Bars(update_to_floor=1.3),
        "floor", processes)
    for model, processes in (("s", 3), ("m", 1))
]  # fmt: skip


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
            return floor_lines(row.work, ours, row.bars, least)
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


def machine() -> dict[str, object]:
    """What the numbers were measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": names[0] if names else platform.processor(), "cores": os.cpu_count(), "gpu": gpu,
        "torch": torch.__version__, "load_average": os.getloadavg()[0],
    }  # fmt: skip


def write(folder: Path, name: str, chosen: list[Row], found: Measurements) -> list[Line]:
    """JSON, tables and picture of what was measured so far; returns the lines."""
    done = [row for row in chosen if row.work in found.records]
    lines = [line for row in done for line in found.lines(row)]
    barred = [line for line in lines if line.bar is not None]
    folder.mkdir(parents=True, exist_ok=True)
    about = machine()
    record = {"machine": about, "workloads": {row.work: asdict(row.ours) for row in done}, "records": found.records,
              "lines": [asdict(line) | {"ratio": line.ratio, "holds": line.holds} for line in lines]}  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    counts = ", ".join(f"{row.work}: {len(found.records[row.work]['ours'])}" for row in done)
    head = f"# nearstep against {TRL_VERSION}\n\n{about}\n\nProcesses of each side: {counts}.\n"
    tables = f"\n## Bars\n\n{markdown(barred)}\n## Everything\n\n{markdown(lines)}"
    (folder / f"{name}.md").write_text(head + tables)
    plot({row.work: found.sides(row) for row in done if row.against != "floor"}, folder / f"{name}.png")
    return barred


def main() -> None:
    """Measure, print the bars, write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, default=REPOSITORY / "runs" / "trl-env", help="TRL's environment")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--full", action="store_true", help="also the larger model")
    parser.add_argument("--rounds", type=int, default=2, help="times A B")
    parser.add_argument("--minutes", type=float, default=20.0, help="no further round of a row begins after this")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="rows whose name has one of these texts")
    parser.add_argument("--rows", type=int, help="episodes of an update")
    parser.add_argument("--updates", type=int, default=1, help="in each process; of several the first is a warm-up")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks" / "results")
    options = parser.parse_args()
    models = ["l"] if options.device == "cuda" else ["s", "m"] if options.full else ["s"]
    dtype = "bfloat16" if options.device == "cuda" else "float32"
    chosen = [row for model in models for row in rows(model, options.device, dtype)]
    if models == ["s"]:
        chosen[1:1] = TO_FLOOR
    chosen = [row for row in chosen if not options.only or any(text in row.work for text in options.only)]
    chosen = [resized(row, options.rows, options.updates) for row in chosen]
    ends = time.monotonic() + 60 * options.minutes
    found = Measurements(environment(options.venv))
    barred: list[Line] = []
    for number in range(options.rounds):
        for row in chosen:
            if number > 0 and not options.full and time.monotonic() > ends:
                continue
            print(f"round {number + 1}: {row.work}", flush=True)
            found.measure(row)
            barred = write(options.output, f"vs_trl_{options.device}", chosen, found)
    table = Table(*COLUMNS)
    for line in barred:
        table.add_row(*line.cells())
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
