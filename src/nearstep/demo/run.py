"""`nearstep demo`: make the world, train with PPO, and say whether it worked."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.demo.outcome import DemoOutcome, evaluate, outcome_tables, read_held_out
from nearstep.demo.prepare import QUICK, DemoScale, Folders, prepare_world
from nearstep.reports.page.write import write_report
from nearstep.reward_modeling.fit import require_trainer
from nearstep.trainer import PPOTrainer

RESPONSE_LENGTH = 48
BLIND_SPOT = (
    "   The reward model notices missing facts and hardly notices wrong ones: PPO states more. See facts wrong."
)


def run_demo(*, output: Path, seed: int, quick: bool) -> dict[str, DemoOutcome]:
    """The whole demo in `output`; the outcomes of the supervised start and of PPO.

    One torch thread: two are slower than one on models this small.
    """
    require_trainer()  # now rather than once the supervised start is trained
    torch.set_num_threads(1)
    console = Console(highlight=False)
    scale = QUICK if quick else DemoScale()
    console.print(Text("1  A world of posts, a supervised start, a reward model"))
    folders = prepare_world(output, seed=seed, scale=scale, say=lambda line: console.print(Text(f"   {line}")))

    console.print(Text("2  PPO against the reward model"))
    trained = PPOTrainer(args=ppo_settings(folders, output / "ppo", seed=seed, quick=quick)).train()

    console.print(Text("3  A judge that training never saw"))
    held_out = read_held_out(folders.held_out)
    policies = {"supervised start": folders.policy, "after PPO": trained.policy}
    outcomes = {
        name: evaluate(folder, held_out, response_length=RESPONSE_LENGTH, seed=seed)
        for name, folder in policies.items()
    }
    judged = f"   Summaries of {len(held_out)} unseen posts, judged against a person's by counting facts"
    console.print(Text(judged), *outcome_tables(outcomes, console.width), sep="\n")
    console.print(Text(BLIND_SPOT), soft_wrap=True)
    table = output / "outcome.json"
    table.write_text(json.dumps({name: asdict(outcome) for name, outcome in outcomes.items()}, indent=2) + "\n")
    _say_where(console, folders, output, table)
    return outcomes


def ppo_settings(folders: Folders, output: Path, *, seed: int, quick: bool) -> PPOConfig:
    """What a user would pass to `nearstep ppo`."""
    return PPOConfig(
        output_dir=str(output),
        seed=seed,
        use_cpu=True,
        model_name_or_path=str(folders.policy),
        reward_model_path=str(folders.reward),
        dataset_name=(str(folders.prompts),),
        response_length=RESPONSE_LENGTH,
        temperature=1.0,
        missing_eos_penalty=2.0,
        kl_coef=0.05,
        learning_rate=5e-4,
        num_ppo_epochs=2,
        num_mini_batches=2,
        per_device_train_batch_size=8 if quick else 64,
        total_episodes=16 if quick else 64 * 40,
        num_sample_generations=2,
    )


def _report(run: Path) -> str:
    """Write the page of the PPO run; where it is, or what it needs."""
    try:
        return f"{write_report(run)} (open it in a browser)"
    except ConfigError as error:
        return f"{error} Then: nearstep report {run}"


def _say_where(console: Console, folders: Folders, output: Path, table: Path) -> None:
    """Where everything lies, and what to do next."""
    places: dict[str, Path | str] = {
        "supervised start": folders.policy,
        "reward model": folders.reward,
        "after PPO": output / "ppo" / "policy",
        "metrics": output / "ppo" / "metrics.jsonl",
        "this table": table,
        "report": _report(output / "ppo"),
    }
    for name, place in places.items():
        console.print(Text(f"   {name:<17} {place}"), soft_wrap=True)
