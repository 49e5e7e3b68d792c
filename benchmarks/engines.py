"""The engines side by side on the same prompts, lengths and weights: speed, weights taken over, memory, mismatch.

    runs/engines-env/bin/python -m benchmarks.engines           # 10 M and 58 M weights, after `make engines`

Each engine runs in a process of its own, in turn, twice. Seconds are processor seconds of all threads, which others on
the machine disturb little; ratios are of one run. An engine whose library is not there is named as skipped.
Writes benchmarks/results/engines.md.
"""

import argparse
import importlib.util
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

from benchmarks.harness.machine import machine
from benchmarks.harness.results import MIB, RESULTS, shown, table, write_results
from benchmarks.harness.workload import Workload, causal_model
from nearstep.config.axes import ENGINES
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import make_policy
from nearstep.rollout.build import make_engine
from nearstep.rollout.engine import EngineSettings, GenerationSettings, play
from nearstep.training.mismatch import mismatch_metrics
from nearstep.types import Prompts

NEEDS = {"vllm": "vllm"}  # packages
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


def skipped(engine: str) -> str | None:
    """Why an engine is left out, if it is."""
    package = NEEDS.get(engine)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: `make engines`"
    return ELSEWHERE.get(engine)


def run_process(engine: str, workload: Workload) -> dict[str, float]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.engines", "--one", engine, "--model", workload.model]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
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
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--model", default="s", help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one, Workload("engines", "rollout", model=options.model))))
        return
    reasons = {engine: reason for engine in options.engines if (reason := skipped(engine)) is not None}
    engines = [engine for engine in options.engines if engine not in reasons]
    rows, kept = [], {}
    for model in options.models:
        workload = Workload("engines", "rollout", model=model)
        records: dict[str, list[dict[str, float]]] = {engine: [] for engine in engines}
        for _ in range(ROUNDS):
            for engine in engines:
                records[engine].append(run_process(engine, workload))
        rows += rows_of(model, engines, records)
        kept[model] = records
    columns = ["", "engine", "tokens per processor second", "of built-in", "tokens per second of the clock",
               "weights, s", "start, s", "memory, MiB", "mismatch KL", "largest gap, nats"]  # fmt: skip
    if not torch.cuda.is_available():
        reasons["a GPU"] = "none is at hand"
    left_out = [f"Skipped: {name} ({reason})." for name, reason in reasons.items()]
    head = ["# Engines side by side", "", HEAD, ""]
    page = "\n".join([*head, table(columns, rows), *left_out])
    print(page)
    write_results(options.results, "engines", {"records": kept, "skipped": reasons}, page, machine())


if __name__ == "__main__":
    main()
