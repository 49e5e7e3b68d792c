"""What the people of the demo's world can tell: six kinds of facts, and the values that each can take."""

import random
from collections.abc import Mapping
from enum import StrEnum
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

# No value stands inside another of its slot, and none inside a filler sentence: a reader can tell them apart by words.
VALUES: Mapping[Slot, tuple[str, ...]] = {
    Slot.AGE: tuple(str(age) for age in range(19, 43, 2)),
    Slot.FEELING: (
        "angry", "sad", "guilty", "hurt", "lonely", "scared", "ashamed", "jealous", "tired", "nervous", "betrayed",
        "confused",
    ),
    Slot.WHO: (
        "sister", "brother", "boss", "roommate", "landlord", "boyfriend", "girlfriend", "cousin", "neighbor", "teacher",
        "father", "mother",
    ),
    Slot.DEED: (
        "crashed my car", "read my diary", "sold my guitar", "forgot my birthday", "broke my laptop", "stole my bike",
        "lied about money", "kissed my friend", "lost my dog", "ate my cake", "burned the couch", "hid the keys",
    ),
    Slot.PLACE: (
        "Denver", "Boston", "Seattle", "Dallas", "Chicago", "Portland", "Austin", "Phoenix", "Miami", "Detroit",
        "Atlanta", "Houston",
    ),
    Slot.QUESTION: (
        "Should I move out", "Can I call the police", "Do I ask for money", "How do I forgive this",
        "Is it time to leave", "Who pays for it", "Am I wrong here", "Would you tell the family",
        "Must I say sorry", "What is a fair price",
    ),
}  # fmt: skip


def draw_facts(rng: random.Random, tell: float) -> dict[Slot, str]:
    """Each slot with probability `tell`, and one of its values, each equally likely."""
    return {slot: rng.choice(values) for slot, values in VALUES.items() if rng.random() < tell}


def another_value(slot: Slot, truth: Facts, rng: random.Random) -> str:
    """A value that is not the true one; any value where the truth is not told."""
    return rng.choice([value for value in VALUES[slot] if value != truth.get(slot)])
