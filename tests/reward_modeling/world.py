"""Pairs whose labels are known to be right or wrong by chance alone: a model that is small, and a ceiling for it."""

import json
import math
import random
from pathlib import Path

from nearstep.config.reward_model import RewardConfig
from nearstep.reward_modeling.trainer import RewardModelTrainer
from tests.tiny import byte_tokenizer, tiny_causal_lm

LETTERS = "abcdefgh"


def worth(text: str) -> float:
    """The true reward of a text: what its letters are worth."""
    return sum(LETTERS.index(letter) - 3.5 for letter in text) / 2


def pairs(count: int, seed: int = 0, **columns) -> list[dict]:
    """Pairs of words of four letters, labelled by Bradley and Terry's coin."""
    rng = random.Random(seed)
    rows = []
    while len(rows) < count:
        one, two = ("".join(rng.choices(LETTERS, k=4)) for _ in range(2))
        if one == two:
            continue
        if rng.random() > 1 / (1 + math.exp(worth(two) - worth(one))):
            one, two = two, one
        rows.append({"prompt": f"Word {rng.randrange(100)}:", "chosen": one, "rejected": two, **columns})
    return rows


def chats(rows: list[dict]) -> list[dict]:
    """The same pairs as conversations."""
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]


def write(path: Path, rows: list[dict]) -> Path:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def base_folder(folder: Path, **options) -> Path:
    """A tiny language model and its tokenizer."""
    tiny_causal_lm(**options).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def trainer(folder: Path, rows: list[dict] | None = None, **changes) -> RewardModelTrainer:
    """A trainer of a few steps on an object and in-memory rows."""
    parts = {
        name: changes.pop(name)
        for name in (
            "model",
            "processing_class",
            "eval_dataset",
            "peft_config",
            "callbacks",
            "train_dataset",
            "reward_funcs",
        )
        if name in changes
    }
    settings = {
        "output_dir": str(folder), "use_cpu": True, "learning_rate": 1e-3, "per_device_train_batch_size": 4,
        "logging_steps": 2, "held_out_share": 0.2, **changes,
    }  # fmt: skip
    if "model" not in parts:
        parts["model"] = tiny_causal_lm()
    given = {"processing_class": byte_tokenizer(), "train_dataset": pairs(20) if rows is None else rows}
    return RewardModelTrainer(RewardConfig(**settings), **{**given, **parts})
