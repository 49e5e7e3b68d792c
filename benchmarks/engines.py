"""The engines side by side on the same prompts, lengths and weights: speed, weights taken over, memory, mismatch.

    runs/engines-env/bin/python -m benchmarks.engines           # 10 M and 58 M weights, after `make engines`

Each engine runs in a process of its own, in turn, twice. Seconds are processor seconds of all threads, which others on
the machine disturb little; ratios are of one run. vLLM's CPU build wants an older transformers than continuous batching
does, so that what cannot run in this environment runs in the one of --other, and a line says so. An engine that neither
has is named as skipped.
Writes benchmarks/results/engines.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers

from benchmarks.harness.machine import REPOSITORY, machine
from benchmarks.harness.results import MIB, RESULTS, shown, table, write_results
from benchmarks.harness.workload import Workload, causal_model
from nearstep.common.errors import ConfigError
from nearstep.config.axes import ENGINES
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play
from nearstep.training.mismatch import mismatch_metrics
from nearstep.types import Prompts

ELSEWHERE = {"vllm_server": "its time is that of another process"}
ROUNDS, LOADS, PLAYS = 2, 3, 2
HEAD = (
    "By `python -m benchmarks.engines`: 32 prompts of 16 to 256 tokens, responses of up to 128 tokens, 40 % of that in "
    "the mean. Memory is the highest use beyond the policy's; vLLM may keep 1 GiB of keys and values."
)
NAMES = {"tiny": "0.02 M", "s": "10 M", "m": "58 M"}


def measured(engine_name: str, workload: Workload) -> dict[str, float]:
    """One engine in this process: the first rollout warms up, the quickest of the others counts."""
    torch.set_num_threads(1)
    policy = make_policy(causal_model(workload))
    before = _resident()
    engine = make_engine(engine_name, EngineSettings(max_rows=workload.rows))
    start = _seconds(lambda: engine.load(policy, 0))
    sync = median(_seconds(lambda: engine.load(policy, 1)) for _ in range(LOADS))
    ids, limits = workload.prompts(), tuple(workload.response_lengths())
    prompts = Prompts(ids, [""] * len(ids), {}, list(range(len(ids))))
    # Limits of rows are not every engine's: all generate to the same ends by the same limits where they are kept.
    settings = GenerationSettings(
        Sampling(), workload.response_length, (), seed=0, limits=limits if engine.capabilities().limits else None
    )
    found, spent, wall = play(engine, prompts, settings), [], []
    for _ in range(PLAYS):
        began = time.perf_counter()
        spent.append(_seconds(lambda: play(engine, prompts, settings)))
        wall.append(time.perf_counter() - began)
    peak = _resident()
    with torch.no_grad():
        now = rollout_logprobs(policy, found, settings.sampling).sampled
    mismatch = mismatch_metrics(now, found.logprobs, found.action_counts)["policy/mismatch_kl"].number()
    engine.close()
    return {
        "tokens": float(len(found.logprobs)), "start": start, "sync": sync, "cpu_seconds": min(spent),
        "wall_seconds": min(wall), "memory_mib": (peak - before) / MIB, "mismatch_kl": mismatch or 0.0,
        "largest": float((now - found.logprobs).abs().max()),
    }  # fmt: skip


def _seconds(act: Callable[[], object]) -> float:
    began = time.process_time()
    act()
    return time.process_time() - began


def _resident() -> int:
    """The most memory that this process has had, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def lacking(engine: str) -> str:
    """Why an engine cannot run in this environment; nothing where it can."""
    if engine in ELSEWHERE:
        return ELSEWHERE[engine]
    try:
        make_engine(engine, EngineSettings()).close()
    except ConfigError as error:
        return str(error)
    return ""


def interpreters(engines: Sequence[str], other: Path) -> tuple[dict[str, str], dict[str, str]]:
    """By which Python each engine runs, and why the rest does not."""
    found, reasons = {}, {}
    for engine in engines:
        why = lacking(engine)
        if why and engine not in ELSEWHERE and other.exists() and not run_process(str(other), "--why-not", engine):
            found[engine] = str(other)
        elif why:
            reasons[engine] = why
        else:
            found[engine] = sys.executable
    return found, reasons


def run_process(python: str, *words: str) -> Any:
    """What this file says in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "benchmarks.engines", *words]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment, cwd=REPOSITORY)
    return json.loads(done.stdout.strip().splitlines()[-1])


def rows_of(model: str, engines: Sequence[str], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[str]]:
    """The lines of the table for one size; ratios are against the engine that is built in."""

    def middle(engine: str, name: str) -> float:
        return median(record[name] for record in records[engine])

    def speed(engine: str, clock: str) -> float:
        return median(record["tokens"] / record[clock] for record in records[engine])

    rows = []
    for engine in engines:
        own, base = speed(engine, "cpu_seconds"), speed("transformers", "cpu_seconds")
        rows.append([
            f"{NAMES[model]} weights", engine, f"{own:,.0f}", f"{own / base:.2f}",
            f"{speed(engine, 'wall_seconds'):,.0f}",
            shown(middle(engine, "sync")), shown(middle(engine, "start")), f"{middle(engine, 'memory_mib'):,.0f}",
            f"{middle(engine, 'mismatch_kl'):.1e}", f"{middle(engine, 'largest'):.1e}",
        ])  # fmt: skip
    return rows


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["s", "m"], choices=list(NAMES))
    parser.add_argument("--engines", nargs="+", default=list(ENGINES))
    parser.add_argument(
        "--other", type=Path, default=REPOSITORY / ".venv/bin/python", help="runs what this environment cannot"
    )
    parser.add_argument("--disturbed", action="store_true", help="say in the results that other programs ran")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--why-not", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="s", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.why_not is not None:
        print(json.dumps(lacking(options.why_not)))
        return
    if options.one is not None:
        found = measured(options.one, Workload("engines", "rollout", model=options.model))
        print(json.dumps(found | {"transformers": transformers.__version__}))
        return
    pythons, reasons = interpreters(options.engines, options.other)
    engines = list(pythons)
    rows, kept = [], {}
    for model in options.models:
        records: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
        for _ in range(ROUNDS):
            for engine in engines:
                records[engine].append(run_process(pythons[engine], "--one", engine, "--model", model))
        rows += rows_of(model, engines, records)
        kept[model] = records
    columns = ["", "engine", "tokens per processor second", "of built-in", "tokens per second of the clock",
               "weights, s", "start, s", "memory, MiB", "mismatch KL", "largest gap, nats"]  # fmt: skip
    if not torch.cuda.is_available():
        reasons["a GPU"] = "none is at hand"
    lines = [f"Skipped: {name} ({reason})." for name, reason in reasons.items()]
    versions = {engine: runs[0]["transformers"] for by_engine in kept.values() for engine, runs in by_engine.items()}
    if len(set(versions.values())) > 1:
        lines.append("transformers: " + ", ".join(f"{version} for {name}" for name, version in versions.items()) + ".")
    if options.disturbed:
        lines.append("Other programs ran on the machine meanwhile: seconds of the clock are worth little.")
    page = "\n\n".join(["# Engines side by side", HEAD, table(columns, rows), *lines])
    print(page)
    write_results(options.results, "engines", {"records": kept, "skipped": reasons}, page, machine())


if __name__ == "__main__":
    main()
