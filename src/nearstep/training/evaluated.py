"""What an evaluation finds: its numbers, its rows, and the few responses that people read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Evaluation:
    """The numbers of an evaluation by training's names (reports/metrics.py), and its rows as they are recorded."""

    numbers: Mapping[str, int | float]
    rows: Sequence[Mapping[str, object]] = ()


@dataclass(frozen=True)
class Sample:
    """What the policy answers now to a prompt, and what it answered before its first update."""

    query: str
    response: str
    score: float  # NaN where it could not be scored
    start_response: str | None = None  # None where it is not known
    start_score: float | None = None
