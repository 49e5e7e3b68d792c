"""How the demo and every recipe learn in the demo's world: reference curves, and whether a new run lies in their bands.

    python -m benchmarks.reference_curves [--world runs/demo]      # 10 minutes of one processor core; writes the curves

Each is a run of 12 updates of 32 episodes, under three seeds. Of a few metrics the means of the first, the second and
the last third of the updates are kept, with their spread over the seeds: benchmarks/reference_curves.json. The slow
tests play each once more, under a seed of their own.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.harness.machine import REPOSITORY, machine
from nearstep import PPOConfig, PPOTrainer
from nearstep.config.recipes import RECIPES
from nearstep.demo.prepare import DemoScale, prepare_world
from nearstep.reports.run_folder import RunFolder

FILE = Path(__file__).with_suffix(".json")
SEEDS = (0, 1, 2)
UPDATES, BATCH = 12, 32
# A band is so many standard deviations wide to each side; and never narrower than what stands beside a metric.
DEVIATIONS = 5
METRICS: Mapping[str, float] = {
    "objective/scores": 0.15, "objective/kl": 0.3, "response/length_mean": 0.7, "policy/entropy_avg": 0.03,
    "val/num_eos_tokens": 0.08,  # of 128 rows: 0.93 and 0.995 are 3 standard errors apart
}  # fmt: skip
RANGE: Mapping[str, object] = {"reward_clip": 5.0, "value_min": -7.0, "value_max": 5.0}  # missing_eos_penalty is in it
# What a recipe for long runs needs to be played in a short one.
SHORTENED: Mapping[str, Mapping[str, object]] = {
    "vapo": {"vf_warmup_updates": 3, "learning_rate": 5e-4, "vf_learning_rate": 1e-3},
    "divergence": {"learning_rate": 5e-4},
    "bpco": {"vf_warmup_updates": 3, "learning_rate": 5e-4, "vf_learning_rate": 1e-3, **RANGE},
    "sao": {"vf_warmup_updates": 3, "learning_rate": 5e-4, "vf_learning_rate": 2.5e-3},
    "pact": RANGE,
}

Curves = Mapping[str, Sequence[float]]
Bands = Mapping[str, Sequence[Mapping[str, float]]]


def names() -> list[str]:
    """The demo, and every recipe."""
    return ["demo", *RECIPES]


def play(name: str, world: Path, seed: int) -> Curves:
    """Of each metric its means over the thirds of a run."""
    with tempfile.TemporaryDirectory() as folder:
        defaults: Mapping[str, Any] = {
            "output_dir": folder, "seed": seed, "use_cpu": True, "model_name_or_path": str(world / "sft"),
            "reward_model_path": str(world / "reward"), "dataset_name": (str(world / "prompts.jsonl"),),
            "response_length": 48, "temperature": 1.0, "missing_eos_penalty": 2.0, "learning_rate": 5e-4,
            "num_ppo_epochs": 2, "num_mini_batches": 2, "per_device_train_batch_size": BATCH, "measure_kl": True,
            "total_episodes": UPDATES * BATCH, "num_sample_generations": 0, "log_rollouts": False,
        }  # fmt: skip
        PPOTrainer(args=PPOConfig(**{**defaults, **RECIPES.get(name, {}), **SHORTENED.get(name, {})})).train()
        lines = RunFolder(Path(folder)).metrics
    return {metric: thirds([line[metric] for line in lines if metric in line]) for metric in METRICS}


def thirds(values: Sequence[float]) -> list[float]:
    """The means of the first, the second and the last third; while the critic warms up the policy has no metrics."""
    cuts = [len(values) * number // 3 for number in range(4)]
    return [fmean(values[begin:end]) for begin, end in pairwise(cuts)]


def bands(runs: Sequence[Curves]) -> Bands:
    """Mean and standard deviation over runs, third by third."""
    return {
        metric: [
            {"mean": round(fmean(each), 5), "std": round(stdev(each), 5)}
            for each in zip(*(run[metric] for run in runs), strict=True)
        ]
        for metric in METRICS
    }


def outside(curves: Curves, reference: Bands) -> list[str]:
    """What lies outside of the bands, in words."""
    found = []
    for metric, each in reference.items():
        for number, (value, band) in enumerate(zip(curves[metric], each, strict=True), start=1):
            width = sqrt((DEVIATIONS * band["std"]) ** 2 + METRICS[metric] ** 2)
            if abs(value - band["mean"]) > width:
                found.append(f"{metric}, third {number}: {value:.3g} is not in {band['mean']:.3g} ± {width:.2g}")
    return found


def read() -> Mapping[str, Bands]:
    """The curves that ship with the repository, by name."""
    curves: Mapping[str, Bands] = json.loads(FILE.read_text(encoding="utf-8"))["curves"]
    return curves


def main(words: Sequence[str] | None = None) -> None:
    """Play everything and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=REPOSITORY / "runs" / "demo")
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--only", nargs="+", choices=names(), default=names(), help="the others stay as they are")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if not (options.world / "reward").is_dir():
        prepare_world(options.world, seed=0, scale=DemoScale(), say=print)
    played = {name: bands([play(name, options.world, seed) for seed in SEEDS]) for name in options.only}
    kept = {**(read() if FILE.exists() else {}), **played}
    curves = {name: kept[name] for name in names() if name in kept}
    record = {"machine": machine(), "updates": UPDATES, "batch": BATCH, "seeds": SEEDS, "curves": curves}
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
