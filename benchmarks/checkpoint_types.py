"""Whether checkpoints in float32, bfloat16 and float16 learn alike: the demo's policy and reward model in each type.

    python -m benchmarks.checkpoint_types [--quick]      # about 4 minutes of one processor core

The demo's supervised start and its reward model are written in each type and opened as users open them: transformers
gives the type of the folder. The critic starts from the reward model. Everything else is the same, for each seed.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.harness.machine import REPOSITORY, at_least_one, machine
from benchmarks.harness.results import RESULTS, table, write_results
from nearstep import PPOTrainer
from nearstep.demo.prepare import QUICK, DemoScale, Folders, prepare_world
from nearstep.demo.run import ppo_settings

TYPES = (torch.float32, torch.bfloat16, torch.float16)
MEASURES = {
    "score": "objective/scores", "KL": "objective/kl", "explained variance": "val/explained_variance",
    "policy's gradient": "policy/grad_norm",
}  # fmt: skip
SEEDS = (0, 1, 2)
SCALE = DemoScale(supervised_posts=2400, ranked_posts=480, prompts=512, held_out=64)


@dataclass(frozen=True)
class Regime:
    """How long a run is, and on how much of a world."""

    scale: DemoScale = SCALE
    updates: int = 14
    batch: int = 32


def name_of(dtype: torch.dtype) -> str:
    """float32, bfloat16, float16."""
    return str(dtype).removeprefix("torch.")


def in_type(world: Folders, dtype: torch.dtype, folder: Path) -> tuple[Path, Path]:
    """Folders of the policy and of the reward model in a type, each with its tokenizer."""
    classes = {"policy": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
    places = []
    for (name, auto_class), source in zip(classes.items(), (world.policy, world.reward), strict=True):
        target = folder / f"{name}_{name_of(dtype)}"
        auto_class.from_pretrained(source, dtype=dtype).save_pretrained(target)
        AutoTokenizer.from_pretrained(source).save_pretrained(target)
        places.append(target)
    return places[0], places[1]


def play(regime: Regime, world: Folders, dtype: torch.dtype, seed: int) -> list[dict[str, float]]:
    """The metrics of every update of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        policy, reward = in_type(world, dtype, Path(scratch))
        given = AutoModelForCausalLM.from_pretrained(policy)
        assert {weight.dtype for weight in given.parameters()} == {dtype}
        settings = replace(
            ppo_settings(world, Path(scratch), seed=seed, quick=False), model_name_or_path=None,
            reward_model_path=None, total_episodes=regime.updates * regime.batch,
            per_device_train_batch_size=regime.batch, num_sample_generations=0, log_rollouts=False,
        )  # fmt: skip
        PPOTrainer(
            args=settings, processing_class=AutoTokenizer.from_pretrained(policy), model=given,
            reward_model=AutoModelForSequenceClassification.from_pretrained(reward),
        ).train()  # fmt: skip
        return [json.loads(line) for line in (Path(scratch) / "metrics.jsonl").read_text().splitlines()]


def means(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of some updates."""
    return {name: fmean(entry[key] for entry in entries) for name, key in MEASURES.items()}


def summary(metrics: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """The first update, in which nothing had been learnt, and the last quarter of them."""
    return {"start": means(metrics[:1]), "end": means(metrics[-max(1, len(metrics) // 4) :])}


def page(found: Mapping[str, list[dict[str, dict[str, float]]]], regime: Regime, seconds: float) -> str:
    """A line for each type, and whether the means of the types lie within the spread of the seeds."""
    ends = {kind: [run["end"]["score"] for run in runs] for kind, runs in found.items()}
    rows = [
        [
            kind,
            f"{fmean(run['start']['score'] for run in runs):.3f}",
            *(f"{fmean(run['end'][name] for run in runs):.3f}" for name in MEASURES),
            " ".join(f"{score:.2f}" for score in ends[kind]),
        ]
        for kind, runs in found.items()
    ]
    columns = ["checkpoint", "score at the start", *(f"{name} at the end" for name in MEASURES), "score of each seed"]
    spread = max(max(scores) - min(scores) for scores in ends.values())
    apart = max(map(fmean, ends.values())) - min(map(fmean, ends.values()))
    verdict = "alike, within" if apart <= spread else "NOT alike: beyond"
    return (
        "# Checkpoints of three types\n\nBy `python -m benchmarks.checkpoint_types`: "
        f"{seconds / 60:.0f} minutes of one processor core. The demo's policy, reward model and critic in each type, "
        f"{regime.updates} updates of {regime.batch} episodes at a learning rate of 5e-4. Means over the seeds and, at "
        "the end, over the last quarter of the updates; the gradient is policy/grad_norm, before it is cut.\n\n"
        + table(columns, rows)
        + f"\nThe means of the types are at most {apart:.3f} apart, the seeds of one up to {spread:.3f}: the types "
        f"learn {verdict} the spread of the seeds.\n"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Play everything, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=at_least_one, help=f"{Regime().updates} unless given")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--quick", action="store_true", help="a few updates, to see that all parts work; proves nothing"
    )
    parser.add_argument("--output", type=Path, help="benchmarks/results, or runs/checkpoint_types with --quick")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    regime, began = Regime(QUICK, 2, 8) if options.quick else Regime(), time.process_time()
    regime = replace(regime, updates=options.updates or regime.updates)
    found: dict[str, list[dict[str, dict[str, float]]]] = {name_of(dtype): [] for dtype in TYPES}
    with tempfile.TemporaryDirectory() as folder:
        world = prepare_world(Path(folder), seed=0, scale=regime.scale, say=print)
        for seed in options.seeds:
            for dtype in TYPES:
                found[name_of(dtype)].append(summary(play(regime, world, dtype, seed)))
                print(f"seed {seed}, {name_of(dtype)}: {found[name_of(dtype)][-1]}", flush=True)
    text = page(found, regime, time.process_time() - began)
    print(text)
    folder_of_results = options.output or (REPOSITORY / "runs" / "checkpoint_types" if options.quick else RESULTS)
    record = {"regime": {"updates": regime.updates, "batch": regime.batch}, "seeds": found}
    write_results(folder_of_results, "checkpoint_types", record, text, machine())


if __name__ == "__main__":
    main()
