"""What the rules of health say of healthy runs and of runs that are made ill on purpose.

    python -m benchmarks.health [--world runs/demo] [--only NAME …]      # 25 minutes of one processor core

The world is the demo's (made where it is missing). Every case is a run of 14 updates of 32 episodes unless it says
otherwise; `illness.py` has what is done to it. Written to benchmarks/results/health.md and health.json.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoTokenizer

from benchmarks.harness.machine import REPOSITORY, machine
from benchmarks.harness.results import RESULTS, table, write_results
from benchmarks.health.cases import HEALTHY, ILL, Case
from benchmarks.health.illness import World
from nearstep import PPOConfig, PPOTrainer
from nearstep.common.errors import NearstepError
from nearstep.demo.prepare import DemoScale, prepare_world
from nearstep.reports.health.verdict import Verdict, judge_run
from nearstep.reports.run_folder import RunFolder

UPDATES, BATCH = 14, 32
SEED = 1


def play(case: Case, world: World, output: Path) -> Verdict:
    """The verdict on the run of a case; one that breaks off is judged by what it left."""
    settings = dict(case.settings)
    updates, batch = int(settings.pop("updates", UPDATES)), int(settings.pop("batch", BATCH))
    defaults: Mapping[str, Any] = {
        "output_dir": str(output), "seed": SEED, "use_cpu": True, "model_name_or_path": str(world.folder / "sft"),
        "reward_model_path": str(world.folder / "reward"), "dataset_name": (str(world.folder / "prompts.jsonl"),),
        "response_length": 48, "temperature": 1.0, "missing_eos_penalty": 2.0, "learning_rate": 5e-4,
        "num_ppo_epochs": 2, "num_mini_batches": 2, "per_device_train_batch_size": batch,
        "total_episodes": updates * batch, "num_sample_generations": 0,
    }  # fmt: skip
    given, tokenizer = dict(case.given(world)), None
    if "model" in given:
        tokenizer = AutoTokenizer.from_pretrained(world.folder / "sft")
    trainer = PPOTrainer(args=PPOConfig(**{**defaults, **settings}), processing_class=tokenizer, **given)
    case.spoil(trainer)
    try:
        trainer.train()
    except NearstepError as error:
        Console(stderr=True).print(f"{case.name}: {error}", markup=False)
    return judge_run(RunFolder(output))


def line(case: Case, verdict: Verdict) -> dict[str, object]:
    """What was done, what was said, and whether it is right."""
    cause = "" if verdict.cause is None else verdict.cause.rule.name
    right = verdict.state in case.states and cause in case.causes if case.causes else verdict.state == "healthy"
    evidence = "" if verdict.cause is None else verdict.cause.seen.text
    return {"case": case.name, "what": case.what, "verdict": verdict.state, "cause": cause, "evidence": evidence,
            "since": None if verdict.cause is None else verdict.cause.seen.update, "right": right,
            "rules": [alert.rule.name for alert in verdict.alerts]}  # fmt: skip


def page(lines: Mapping[str, Sequence[Mapping[str, object]]], seconds: float) -> str:
    """Both tables."""
    parts = [
        f"# What the rules of health say\n\nBy `python -m benchmarks.health`: {seconds / 60:.0f} minutes of one "
        "processor "
        "core. Runs in the demo's world."
    ]
    for title, found in lines.items():
        right = sum(bool(each["right"]) for each in found)
        cells = [
            [str(each["case"]), str(each["what"]), str(each["verdict"]), f"`{each['cause']}`" if each["cause"] else "–",
             str(each["evidence"] or "–"), "yes" if each["right"] else "**no**"]
            for each in found
        ]  # fmt: skip
        columns = ["run", "what it is", "verdict", "cause that is named", "evidence", "right"]
        parts.append(f"## {title}: {right} of {len(found)} told rightly\n\n{table(columns, cells)}")
    return "\n\n".join(parts)


def main(words: Sequence[str] | None = None) -> None:
    """Play every case, print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=REPOSITORY / "runs" / "demo")
    parser.add_argument("--only", nargs="+", help="names of cases")
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder for the runs, where those that lie there whole are judged and not played again",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    if not (options.world / "reward").is_dir():
        prepare_world(options.world, seed=0, scale=DemoScale(), say=print)
    world, began = World(options.world), time.process_time()
    lines: dict[str, list[dict[str, object]]] = {}
    for title, cases in (("Healthy runs", HEALTHY), ("Runs made ill", ILL)):
        for case in cases:
            if options.only and case.name not in options.only:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                folder = (options.keep or Path(scratch)) / case.name.replace(" ", "_")
                is_there = (folder / "policy").is_dir()
                verdict = judge_run(RunFolder(folder)) if is_there else play(case, world, folder)
            lines.setdefault(title, []).append(line(case, verdict))
            print("#", lines[title][-1], flush=True)
    text = page(lines, time.process_time() - began)
    print(text)
    write_results(options.output, "health", {"runs": lines}, text, machine())


if __name__ == "__main__":
    main()
