"""What a critic on the policy's trunk costs in numbers: the same task with a separate critic and with a shared trunk.

    python -m benchmarks.critics [--quick]      # about 10 minutes of one processor core

A small Llama (2 layers, 64 wide) that learned to sort 8 letters from teachers who slip has to unlearn that (the task of
`benchmarks.stability`, without drift). Advantages are GAE's; everything but the critic is the same, for each seed.
With a shared trunk the weight of the value loss is varied, since it decides how much the trunk serves the critic.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from benchmarks.drift.play import Regime
from benchmarks.drift.task import beginner, is_right, questions, tokenizer
from benchmarks.harness.machine import REPOSITORY, at_least_one, machine
from benchmarks.harness.results import RESULTS, write_results
from benchmarks.stability import quick
from nearstep import PPOConfig, PPOTrainer

CRITICS: Mapping[str, Mapping[str, object]] = {
    "separate, vf_coef 0.1": {},
    "shared, vf_coef 0.01": {"critic_trunk": "shared", "vf_coef": 0.01},
    "shared, vf_coef 0.1": {"critic_trunk": "shared"},
    "shared, vf_coef 1": {"critic_trunk": "shared", "vf_coef": 1.0},
}
MEASURES = {
    "reward": "objective/scores", "explained variance": "val/explained_variance", "gradient": "policy/grad_norm",
    "KL to the start": "objective/kl",
}  # fmt: skip
SEEDS = (0, 1, 2)
NO_PENALTY = 1e-9  # with 0 there is no reference, and so no KL to be told


def play(regime: Regime, critic: Mapping[str, object], start: nn.Module, seed: int) -> list[dict[str, float]]:
    """The metrics of every update of a run."""
    with tempfile.TemporaryDirectory() as folder:
        config = PPOConfig(
            output_dir=folder, seed=seed, use_cpu=True, response_length=regime.length + 2, temperature=1.0,
            num_ppo_epochs=1, num_generations=regime.num_generations, batch_size=regime.batch_size, kl_coef=NO_PENALTY,
            num_mini_batches=regime.num_mini_batches, total_episodes=regime.updates * regime.batch_size,
            per_device_train_batch_size=regime.batch_size, local_rollout_forward_batch_size=regime.batch_size,
            learning_rate=regime.learning_rate, lr_scheduler_type="constant", num_sample_generations=0,
            log_rollouts=False, **critic,
        )  # fmt: skip
        asked = [{"prompt": question} for question in questions(regime.prompts, regime.length, seed=seed + 1000)]
        PPOTrainer(
            args=config, processing_class=tokenizer(), model=copy.deepcopy(start), reward_funcs=is_right,
            train_dataset=asked,
        ).train()  # fmt: skip
        return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def at_the_end(metrics: list[dict[str, float]]) -> dict[str, float]:
    """Means over the last fifth of the updates."""
    last = metrics[-max(1, len(metrics) // 5) :]
    return {name: fmean(entry[key] for entry in last) for name, key in MEASURES.items()}


def page(found: Mapping[str, list[dict[str, float]]], regime: Regime, seconds: float) -> str:
    """A table: one line for each critic, means over the seeds, and every seed's reward."""
    lines = [f"| critic | {' | '.join(MEASURES)} | reward of each seed |", "| --- " * (len(MEASURES) + 2) + "|"]
    for critic, runs in found.items():
        means = [f"{fmean(run[name] for run in runs):.3f}" for name in MEASURES]
        each = " ".join(f"{run['reward']:.2f}" for run in runs)
        lines.append(f"| {critic} | {' | '.join(means)} | {each} |")
    head = (
        f"# A critic on the policy's trunk\n\nBy `python -m benchmarks.critics`: "
        f"{seconds / 60:.0f} minutes of one processor core. Learning rate {regime.learning_rate:g}, {regime.updates} "
        "updates. Means over the last fifth of the updates and over the seeds; the gradient is policy/grad_norm, "
        "before it is cut."
    )
    return head + "\n\n" + "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    """Play everything, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=at_least_one, help=f"{Regime().updates} unless given")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--quick", action="store_true", help="a few updates, to see that all parts work; proves nothing"
    )
    parser.add_argument("--output", type=Path, help="benchmarks/results, or runs/critics with --quick")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    regime, began = quick(Regime()) if options.quick else Regime(), time.process_time()
    regime = replace(regime, updates=options.updates or regime.updates)
    found: dict[str, list[dict[str, float]]] = {critic: [] for critic in CRITICS}
    for seed in options.seeds:
        start = beginner(regime.length, regime.supervised_steps, regime.slips, seed)
        for critic, settings in CRITICS.items():
            found[critic].append(at_the_end(play(regime, settings, start, seed)))
    text = page(found, regime, time.process_time() - began)
    print(text)
    folder = options.output or (REPOSITORY / "runs" / "critics" if options.quick else RESULTS)
    write_results(folder, "critics", {"regime": {"updates": regime.updates}, "seeds": found}, text, machine())


if __name__ == "__main__":
    main()
