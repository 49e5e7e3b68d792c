"""What several tests of the reports need."""

import json
from pathlib import Path

from torch import nn

from nearstep.config.ppo import PPOConfig
from nearstep.reports.callbacks import Callbacks


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a file of strict JSON lines."""
    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def make_callbacks(config: PPOConfig, *callbacks: object, total_updates: int = 4, **options) -> Callbacks:
    """Callbacks around a model that does nothing."""
    model = nn.Linear(1, 1)
    return Callbacks(config, callbacks, model=model, processing_class=None, total_updates=total_updates, **options)
