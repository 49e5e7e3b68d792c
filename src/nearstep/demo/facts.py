"""What the people of the demo's world can tell: six kinds of facts, and the values that each can take (world.toml)."""

import random
import tomllib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from importlib.resources import files
from typing import TypeAlias


class Slot(StrEnum):
    """One kind of fact; its value is the name of a column in the demo's data."""

    AGE = "age"
    FEELING = "feeling"
    WHO = "who"
    DEED = "deed"
    PLACE = "place"
    QUESTION = "question"


Facts: TypeAlias = Mapping[Slot, str]  # those that a post tells or a summary states, seldom all six

_WORLD = tomllib.loads((files(__package__) / "world.toml").read_text(encoding="utf-8"))
VALUES: Mapping[Slot, Sequence[str]] = {Slot(name): values for name, values in _WORLD["values"].items()}
SUBREDDITS: Sequence[str] = _WORLD["subreddits"]
FILLERS: Sequence[str] = _WORLD["fillers"]


def draw_facts(rng: random.Random, tell: float) -> dict[Slot, str]:
    """Each slot with probability `tell`, and one of its values, each equally likely."""
    return {slot: rng.choice(values) for slot, values in VALUES.items() if rng.random() < tell}


def another_value(slot: Slot, truth: Facts, rng: random.Random) -> str:
    """A value that is not the true one; any value where the truth is not told."""
    return rng.choice([value for value in VALUES[slot] if value != truth.get(slot)])
