"""What scaling and whitening of scores do, on the demo's world.

    nearstep demo && python -m benchmarks.score_scaling [--seeds 0 1] [--updates 24]

The demo's PPO (64 responses an update) with one thing changed at a time, against the same reward model. "Other unit"
multiplies the score, the penalty for a missing EOS and kl_coef by ten: the same problem, told in larger numbers. "Score
alone" multiplies only the score. Scores in the table are the reward model's own, before any scaling; a judge that
training never saw counts facts. Means over the seeds and, but for the judge, over the last six updates.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.harness.machine import REPOSITORY, machine
from benchmarks.harness.results import RESULTS, table, write_results
from nearstep import PPOTrainer, read_run
from nearstep.demo.outcome import evaluate, read_held_out
from nearstep.demo.prepare import Folders
from nearstep.demo.run import RESPONSE_LENGTH, ppo_settings

OTHER_UNIT: Mapping[str, object] = {"reward_weights": (10.0,), "missing_eos_penalty": 20.0, "kl_coef": 0.5}
SCORE_ALONE: Mapping[str, object] = {"reward_weights": (10.0,)}
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "as the demo has it": {},
    "`whiten_advantages = false`": {"whiten_advantages": False},
    "`whiten_rewards`": {"whiten_rewards": True},
    "`normalize_scores = scale`": {"normalize_scores": "scale"},
    "`normalize_scores = shift_and_scale`": {"normalize_scores": "shift_and_scale"},
    "`reward_clip = 2`": {"reward_clip": 2.0},
    "other unit": OTHER_UNIT,
    "other unit, `whiten_advantages = false`": {**OTHER_UNIT, "whiten_advantages": False},
    "score alone × 10": SCORE_ALONE,
    "score alone × 10, `normalize_scores = scale`": {**SCORE_ALONE, "normalize_scores": "scale"},
}
LAST = 6  # updates
COLUMNS = (
    "variant", "score of the reward model", "preferred by the judge", "KL", "explained variance", "critic's gradient",
    "policy's gradient",
)  # fmt: skip


def play(settings: Mapping[str, object], folders: Folders, seed: int, updates: int) -> dict[str, float]:
    """One run; what is measured at its end."""
    with tempfile.TemporaryDirectory() as place:
        config = replace(
            ppo_settings(folders, Path(place), seed=seed, quick=False),
            total_episodes=64 * updates, num_sample_generations=0, **settings,
        )  # fmt: skip
        PPOTrainer(config).train()
        run = read_run(place)
        end = run.metrics.tail(LAST)
        lines = run.folder.lines("rollouts.jsonl")
        own = fmean(line["scores"]["reward"] for line in lines if line["update"] > len(run.metrics) - LAST)
        outcome = evaluate(
            Path(place) / "policy", read_held_out(folders.held_out), response_length=RESPONSE_LENGTH, seed=seed
        )
        return {
            "score": own,
            "preferred": outcome.preferred.value,
            "kl": float(end["objective/kl"].mean()),
            "explained": float(end["val/explained_variance"].mean()),
            "critic": float(end["value/grad_norm"].mean()),
            "policy": float(end["policy/grad_norm"].mean()),
        }


def page(found: Mapping[str, Sequence[Mapping[str, float]]], updates: int, minutes: float) -> str:
    """The results in Markdown."""
    rows = []
    for name, runs in found.items():
        mean = {key: fmean(run[key] for run in runs) for key in runs[0]}
        each = " ".join(f"{run['score']:.2f}" for run in runs)
        rows.append((
            name, f"{mean['score']:.2f} ({each})", f"{mean['preferred']:.0%}", f"{mean['kl']:.1f}",
            f"{mean['explained']:.2f}", f"{mean['critic']:.2g}", f"{mean['policy']:.2g}",
        ))  # fmt: skip
    seeds = len(next(iter(found.values())))
    return (
        f"# Scaling and whitening of scores\n\nBy `python -m benchmarks.score_scaling`: {updates} updates of 64 "
        f"responses, {seeds} seed(s), each in brackets; {minutes:.0f} minutes of one core. Gradients are norms before "
        "they are cut at 1.\n\n" + table(COLUMNS, rows)
    )


def main(words: Sequence[str] | None = None) -> None:
    """Play everything, print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--demo", type=Path, default=REPOSITORY / "runs" / "demo", help="what `nearstep demo` left")
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    folders, began = Folders.under(options.demo), time.process_time()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    for seed in options.seeds:
        for name, settings in VARIANTS.items():
            found[name].append(play(settings, folders, seed, options.updates))
            print(name, seed, found[name][-1], flush=True)
    text = page(found, options.updates, (time.process_time() - began) / 60)
    print(text)
    write_results(options.output, "score_scaling", {"updates": options.updates, "runs": found}, text, machine())


if __name__ == "__main__":
    main()
