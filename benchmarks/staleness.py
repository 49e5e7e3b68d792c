"""Generation beside the update against generation in turn, at equal episodes: wall time, final score, who waits.

    python -m benchmarks.staleness --world runs/demo                # three seeds of each, after `make demo`

One run after the other, seeds in the outer loop, so that what else the machine does meets all alike; ratios are of one
invocation. Both use two threads: the run in turn alone, the other one for each process. Writes
benchmarks/results/staleness.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from benchmarks.harness.machine import machine
from benchmarks.harness.results import RESULTS, table, write_results

THREADS = 2
LAST = 5  # updates whose mean is the final score
RUN = ("use_cpu=true", "num_sample_generations=0", "log_rollouts=false", "health_checks=false", "measure_kl=true")


def played(world: Path, staleness: int, seed: int, episodes: int, rows: int) -> dict[str, float]:
    """One run by the command line, and what its metrics say."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "model_name_or_path": world / "sft", "reward_model_path": world / "reward", "output_dir": folder,
            "dataset_name": world / "prompts.jsonl", "response_length": 48, "temperature": 1.0, "learning_rate": 3e-4,
            "per_device_train_batch_size": rows, "total_episodes": episodes, "missing_eos_penalty": 1.0, "seed": seed,
            "max_staleness": staleness,
        }  # fmt: skip
        flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        flags += [text for each in RUN for text in (f"--{each.split('=')[0]}", each.split("=")[1])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "nearstep", "ppo", *flags], env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"max_staleness = {staleness}, seed {seed} failed:\n{done.stderr[-2000:]}")
        whole = time.perf_counter() - began
        entries = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    updates = [entry for entry in entries if "seconds" in entry]
    later = updates[1:]  # the first holds the start of the process
    return {
        "seconds": whole,
        "seconds_of_updates": sum(entry["seconds"] for entry in later),
        "score": mean(entry["objective/scores"] for entry in updates[-LAST:]),
        "kl": mean(entry["objective/kl"] for entry in updates[-LAST:]),
        "age": mean(entry.get("staleness/age", 0.0) for entry in updates),
        "trainer_waits": mean(entry["time/generate"] for entry in later),
        "generation_waits": mean(entry.get("staleness/idle", 0.0) for entry in later),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--world", type=Path, default=Path("runs/demo"), help="what make demo has left")
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=1280)
    parser.add_argument("--rows", type=int, default=64, help="episodes of an update")
    parser.add_argument("--disturbed", action="store_true", help="say in the results that other programs ran")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    found: dict[int, list[dict[str, float]]] = {each: [] for each in given.staleness}
    for seed in given.seeds:
        for staleness in given.staleness:
            found[staleness].append(played(given.world, staleness, seed, given.episodes, given.rows))
            print(f"max_staleness {staleness}, seed {seed}: {found[staleness][-1]}", flush=True)
    in_turn = found[given.staleness[0]]
    lines = []
    for staleness, runs in found.items():
        means = {name: mean(run[name] for run in runs) for name in runs[0]}
        pairs = zip(runs, in_turn, strict=True)
        ratio = mean(run["seconds_of_updates"] / other["seconds_of_updates"] for run, other in pairs)
        scores = ", ".join(f"{run['score']:.2f}" for run in runs)
        lines.append([
            str(staleness), f"{means['seconds_of_updates']:.0f} s", f"{ratio:.2f}", f"{means['score']:.2f} ({scores})",
            f"{means['kl']:.1f}", f"{means['age']:.2f}", f"{means['trainer_waits']:.0%}",
            f"{means['generation_waits']:.0%}",
        ])  # fmt: skip
    head = (
        f"By `python -m benchmarks.staleness`: the demo's world, {given.episodes} episodes, {given.rows} an update, "
        f"seeds {', '.join(map(str, given.seeds))}; means, scores of each seed in brackets. Time is that of the "
        "updates after the first."
    )
    columns = ["max_staleness", "time", "ratio", "final score", "KL", "age", "trainer waits", "generation waits"]
    disturbed = ["Other programs ran on the machine meanwhile: times are worth little."] if given.disturbed else []
    page = "\n\n".join(["# Generation beside the update", head, table(columns, lines), *disturbed])
    print(page)
    record = {"runs": {str(staleness): runs for staleness, runs in found.items()}}
    write_results(given.results, "staleness", record, page, machine(THREADS))


if __name__ == "__main__":
    main()
