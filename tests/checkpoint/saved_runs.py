"""Small runs that save after every update, and everything of them that must be equal."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nearstep import PPOTrainer
from nearstep.checkpoint.snapshot import take_snapshot
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, low_ids, settings

ROWS = [{"prompt": text} for text in PROMPTS]
TIMES = ("eps", "seconds", "tokens_per_second")  # and time/…: what a clock says


def trainer_of(folder: Path, *, model=None, given=None, **changed) -> PPOTrainer:
    """A trainer of four updates that saves after each; `changed` are settings."""
    config = settings(folder, **{"save_steps": 1, "total_episodes": 32, **changed})
    parts = {"reward_funcs": low_ids, "train_dataset": ROWS, **(given or {})}
    return PPOTrainer(config, byte_tokenizer(), model or tiny_causal_lm(), **parts)


def everything(trainer: PPOTrainer) -> dict[str, Tensor]:
    """All weights and all moments of the optimizers, by name."""
    snapshot = take_snapshot(trainer.recipe.learners, trainer.state, {})
    return {f"{network}: {name}": tensor.clone() for network, tensors in snapshot.networks.items()
            for name, tensor in tensors.items()}  # fmt: skip


def assert_same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Not close: equal."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} of {len(one)} tensors differ, {different[0]} first"


def records(folder: Path) -> dict[str, list[dict[str, object]]]:
    """What the run has recorded, without what a clock says."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.name] = [without_times(line) for line in lines]
    return found


def without_times(line: Mapping[str, object]) -> dict[str, object]:
    """What no clock says."""
    return {name: value for name, value in line.items() if name not in TIMES and not name.startswith("time/")}
