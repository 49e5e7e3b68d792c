"""Every recipe against PPO and a group-normalised baseline at equal rollouts: reward, critic, stability.

    python -m benchmarks.recipes [--seeds 0] [--tasks sorting] [--regimes exact] [--only ppo bpco]

Two tasks. `sorting`: a small Llama sorts 24 letters, 25 tokens a response, right (1) or wrong (0); it has learned that
from teachers who slip, and is right about once in three. `demo`: the demo's summaries, scored by its reward model. A
run trains on as many responses as any other, each prompt answered once, but for recipes of groups, which need 8 or 16
answers and so see as many times fewer prompts. A recipe that refills (dapo) generates more: the table says how many.

Three regimes: `exact`, where the engine is the trainer; `stale`, where it plays the weights of 4 updates ago; and
`rounded`, where its matrices have 8 bits (float8 e5m2), as in `benchmarks.stability`. The demo is played with the exact
engine alone.

The rates of papers are those of models a thousand times as large. Every policy has one rate here, that of the task; a
recipe whose critic learns k times as fast as its policy keeps k. Updates in which only the critic trains are as many
as the recipe says, but at most a tenth of the run. Everything else is the recipe's own, the temperature 1 and no KL
penalty for all. A small task with few seeds is no proof for large models: it shows what a mechanism does.
"""

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.drift.engine import DriftingEngine
from benchmarks.drift.task import beginner, is_right, questions, tokenizer
from benchmarks.harness.machine import REPOSITORY, machine
from benchmarks.harness.results import RESULTS, table, write_results
from nearstep import PPOConfig, PPOTrainer
from nearstep.config.axes import RANGED_HEADS
from nearstep.config.recipes import RECIPES
from nearstep.demo.prepare import DemoScale, Folders, prepare_world
from nearstep.reports.run_folder import RunFolder
from nearstep.rollout.engine import EngineSettings
from nearstep.rollout.transformers_engine import TransformersEngine

BASELINES: Mapping[str, Mapping[str, object]] = {
    "ppo": {},
    "group_normalized": {"advantage": "group_normalized", "num_generations": 8},
}
NOT_PLAYED = ("decoupled", "trl_parity")  # as ppo, but for the order of steps and for TRL's habits
SEEDS = (0, 1, 2)
WARM_UP_SHARE = 0.1  # of the updates of a run, at most


@dataclass(frozen=True)
class Regime:
    """How the engine differs from the trainer."""

    stale_by: int = 0  # updates that its weights are behind
    precision: torch.dtype | None = None  # what its matrices are rounded to

    def engine(self, settings: EngineSettings) -> object:
        """The built-in engine, drifting where the regime says so."""
        exact = TransformersEngine(settings)
        drifts = self.stale_by or self.precision is not None
        return DriftingEngine(exact, self.precision, self.stale_by) if drifts else exact


REGIMES: Mapping[str, Regime] = {
    "exact": Regime(),
    "stale": Regime(stale_by=4),
    "rounded": Regime(precision=torch.float8_e5m2),
}


@dataclass(frozen=True)
class Task:
    """What is learned, for how long, and how fast."""

    updates: int
    batch_size: int
    response_length: int
    learning_rate: float
    score_range: tuple[float, float]  # for critics whose values lie in a declared range
    regimes: tuple[str, ...]
    inputs: Callable[[int], Mapping[str, Any]]  # what a trainer is given, by the seed
    settings: Mapping[str, Any]


LETTERS, SUPERVISED_STEPS, SLIPS = 24, 2000, 0.03


@cache
def _sorter(seed: int) -> nn.Module:
    return beginner(LETTERS, SUPERVISED_STEPS, SLIPS, seed)


def _sorting(seed: int) -> Mapping[str, Any]:
    asked = [{"prompt": question} for question in questions(4096, LETTERS, seed=seed + 1000)]
    return {
        "processing_class": tokenizer(), "model": copy.deepcopy(_sorter(seed)), "reward_funcs": is_right,
        "train_dataset": asked,
    }  # fmt: skip


@cache
def _world() -> Folders:
    return prepare_world(REPOSITORY / "runs" / "demo", seed=0, scale=DemoScale(), say=print)


def _demo(seed: int) -> Mapping[str, Any]:
    world = _world()
    return {"model": str(world.policy), "reward_model": str(world.reward), "train_dataset": str(world.prompts)}


TASKS: Mapping[str, Task] = {
    "sorting": Task(60, 128, LETTERS + 1, 1e-4, (0.0, 1.0), tuple(REGIMES), _sorting, {"missing_eos_penalty": None}),
    "demo": Task(30, 64, 48, 3e-4, (-5.0, 5.0), ("exact",), _demo, {"reward_clip": 5.0}),
}


@dataclass(frozen=True)
class Run:
    """One recipe with one seed in one regime of a task: metrics by update."""

    task: str
    regime: str
    recipe: str
    seed: int
    seconds: float  # of one processor core
    curves: Mapping[str, Sequence[float]]

    def at_the_end(self, metric: str) -> float | None:
        """Mean over the last fifth of the updates; None where the run has no such metric."""
        values = self.curves.get(metric, ())
        return fmean(values[-max(1, len(values) // 5) :]) if values else None

    @property
    def collapsed(self) -> bool:
        """Whether it ends below its first fifth."""
        rewards = self.curves[SCORE]
        first = fmean(rewards[: max(1, len(rewards) // 5)])
        last = self.at_the_end(SCORE)
        return last is not None and last < first


MEANINGLESS = 1e6  # of a share of the variance: the returns are all alike
SCORE, VARIANCE, BIAS = "objective/scores", "val/explained_variance", "val/value_bias"
METRICS = (
    SCORE, VARIANCE, BIAS, "policy/mismatch_kl", "policy/clipfrac_avg", "policy/entropy_avg", "response/length_mean",
    "val/effective_sample_size", "episode",
)  # fmt: skip


def settings_of(recipe: str, task: Task) -> dict[str, Any]:
    """The settings of a recipe on a task: the recipe's own, but for rates, warm-ups and what the task declares."""
    chosen = {**BASELINES, **RECIPES}[recipe]
    settings: dict[str, Any] = {**task.settings, **chosen, "kl_coef": 0.0, "temperature": 1.0}
    policy, critic = chosen.get("learning_rate"), chosen.get("vf_learning_rate")
    settings["learning_rate"] = task.learning_rate
    if isinstance(policy, float) and isinstance(critic, float):
        settings["vf_learning_rate"] = task.learning_rate * critic / policy
    longest = int(task.updates * WARM_UP_SHARE)
    if "vf_warmup_updates" in chosen:
        settings["vf_warmup_updates"] = min(int(str(chosen["vf_warmup_updates"])), longest)
    if chosen.get("value_head") in RANGED_HEADS:
        settings["value_min"], settings["value_max"] = task.score_range
    return settings


def play(name: str, task: Task, regime: str, recipe: str, seed: int) -> Run:
    """Train, and keep the metrics of every update."""
    began = time.process_time()
    given = task.inputs(seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = PPOConfig(**{
            "output_dir": folder, "seed": seed, "use_cpu": True, "response_length": task.response_length,
            "num_ppo_epochs": 1, "num_mini_batches": 4, "batch_size": task.batch_size,
            "per_device_train_batch_size": task.batch_size, "local_rollout_forward_batch_size": task.batch_size,
            "total_episodes": task.updates * task.batch_size, "lr_scheduler_type": "constant",
            "num_sample_generations": 0, "log_rollouts": False, **settings_of(recipe, task),
        })  # fmt: skip
        PPOTrainer(args=config, engine=REGIMES[regime].engine, **given).train()
        lines = RunFolder(Path(folder)).metrics
    curves = {metric: [float(line[metric]) for line in lines if metric in line] for metric in METRICS}
    return Run(name, regime, recipe, seed, time.process_time() - began, curves)


def runs(
    tasks: Mapping[str, Task], regimes: Sequence[str], recipes: Sequence[str], seeds: Sequence[int]
) -> Iterator[Run]:
    """Every recipe with every seed in every regime of every task."""
    for seed in seeds:
        for name, task in tasks.items():
            for regime in (each for each in task.regimes if each in regimes):
                for recipe in recipes:
                    yield play(name, task, regime, recipe, seed)


def page(found: Sequence[Run], updates: Mapping[str, int]) -> str:
    """The results in Markdown: a table for each regime of a task."""
    seconds = sum(run.seconds for run in found)
    seeds = sorted({run.seed for run in found})
    parts = [
        "# Recipes at equal rollouts",
        f"By `python -m benchmarks.recipes`: {seconds / 60:.0f} minutes of one processor core; seeds "
        f"{', '.join(map(str, seeds))}. Means over the last fifth of the updates; ± is the standard deviation over "
        "seeds. A run has collapsed where it ends below the mean of its first fifth. Bias is the mean of V − R.",
        CHOICE,
    ]
    for task, regime in dict.fromkeys((run.task, run.regime) for run in found):
        here = [run for run in found if (run.task, run.regime) == (task, regime)]
        size, rate = TASKS[task].batch_size, TASKS[task].learning_rate
        parts += [
            f"## {task}, {regime} engine",
            f"{updates[task]} updates of {size} responses, 4 optimizer steps each, learning rate {rate:g}.",
            table(COLUMNS, [_cells(recipe, here) for recipe in dict.fromkeys(run.recipe for run in here)]),
        ]
    return "\n\n".join(parts) + "\n"


CHOICE = (
    "Before the runs the rate of `sorting` was chosen with `ppo` and `group_normalized` alone: 1e-4, for at 3e-4 the "
    "first Adam steps undo the start. `vapo` and `sao` take λ = 1 − 1/(0.05 L) for the policy, which is 0.2 for 25 "
    "tokens and 0 for 20: they are made for rows of hundreds of tokens and more, and a critic that explains nothing "
    "yet then decides alone. One seed ranks nothing that lies within some hundredths."
)
COLUMNS = (
    "recipe", "reward at the end", "each seed", "collapsed", "explained variance", "bias", "mismatch KL", "dropped",
    "responses", "core seconds",
)  # fmt: skip


def _cells(recipe: str, found: Sequence[Run]) -> list[str]:
    own = [run for run in found if run.recipe == recipe]
    rewards = [reward for run in own if (reward := run.at_the_end(SCORE)) is not None]
    spread = f" ± {stdev(rewards):.3f}" if len(rewards) > 1 else ""
    return [
        recipe, f"{fmean(rewards):.3f}{spread}", " ".join(f"{reward:.2f}" for reward in rewards),
        f"{sum(run.collapsed for run in own)} of {len(own)}", _mean(own, VARIANCE), _mean(own, BIAS),
        _mean(own, "policy/mismatch_kl"), _mean(own, "policy/clipfrac_avg"),
        f"{fmean(run.curves['episode'][-1] for run in own):.0f}",
        f"{fmean(run.seconds for run in own):.0f}",
    ]  # fmt: skip


def _mean(found: Sequence[Run], metric: str) -> str:
    values = [value for run in found if (value := run.at_the_end(metric)) is not None and abs(value) < MEANINGLESS]
    return f"{fmean(values):.3g}" if values else "–"


def plot(found: Sequence[Run], path: Path) -> None:
    """A panel for each regime of a task: the reward over the updates, a line for each recipe, mean over seeds."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((run.task, run.regime) for run in found))
    recipes = list(dict.fromkeys(run.recipe for run in found))
    figure = Figure(figsize=(7 * len(places), 5), layout="constrained")
    for panel, (task, regime) in zip(figure.subplots(1, len(places), squeeze=False)[0], places, strict=True):
        for number, recipe in enumerate(recipes):
            own = [run for run in found if (run.task, run.regime, run.recipe) == (task, regime, recipe)]
            if not own:
                continue
            means = [fmean(each) for each in zip(*(run.curves[SCORE] for run in own), strict=False)]
            smooth = [fmean(means[max(0, place - 4) : place + 1]) for place in range(len(means))]
            panel.plot(smooth, color=f"C{number % 10}", linestyle="-" if number < 10 else "--", label=recipe)
        panel.set(title=f"{task}, {regime} engine", xlabel="update", ylabel="reward")
    figure.axes[0].legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=80)


def read(file: Path) -> list[Run]:
    """The runs that a file keeps; none where there is no file."""
    return [Run(**kept) for kept in json.loads(file.read_text(encoding="utf-8"))["runs"]] if file.exists() else []


def main(words: Sequence[str] | None = None) -> None:
    """Play what is asked for, and write json, md and png; runs that the file holds already are played again only if
    they are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*BASELINES, *(name for name in RECIPES if name not in NOT_PLAYED)]
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="recipes")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--quick", action="store_true", help="three updates, to see that all parts work")
    parser.add_argument("--output", type=Path, help="benchmarks/results, or runs/recipes with --quick")
    parser.add_argument("--report_only", action="store_true", help="write md and png again from the json of a run")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    tasks = {name: replace(task, updates=3) if options.quick else task for name, task in TASKS.items()}
    folder = options.output or (REPOSITORY / "runs" / "recipes" if options.quick else RESULTS)
    file = folder / "recipes.json"
    if options.report_only and not file.exists():
        parser.error(f"--report_only: there is no {file}")
    kept = {(run.task, run.regime, run.recipe, run.seed): run for run in read(file)}
    updates = {name: task.updates for name, task in tasks.items()}
    if options.report_only:
        write(folder, [*kept.values()], updates, json.loads(file.read_text(encoding="utf-8"))["machine"])
    else:
        chosen = {name: tasks[name] for name in options.tasks}
        for run in runs(chosen, options.regimes, options.only, options.seeds):
            kept[run.task, run.regime, run.recipe, run.seed] = run
            end = run.at_the_end(SCORE)
            print(
                f"{run.task}, {run.regime}, {run.recipe}, seed {run.seed}: {end:.3f}, {run.seconds:.0f} s", flush=True
            )
            write(folder, [*kept.values()], updates, machine())
    print(page([*kept.values()], updates))
    plot([*kept.values()], folder / "recipes.png")


def write(folder: Path, found: Sequence[Run], updates: Mapping[str, int], facts: Mapping[str, object]) -> None:
    """The runs so far, and their page."""
    record = {"runs": [{**vars(each), "curves": _short(each.curves)} for each in found]}
    write_results(folder, "recipes", record, page(found, updates), facts, indent=None)


def _short(curves: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Five digits are enough for a figure."""
    return {metric: [float(f"{value:.5g}") for value in values] for metric, values in curves.items()}


if __name__ == "__main__":
    main()
