"""What a rule is, and what it says when it has found something."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nearstep.reports.health.evidence import RunEvidence

Level: TypeAlias = Literal["info", "warn", "error"]
LEVELS: tuple[Level, ...] = ("info", "warn", "error")
Thresholds: TypeAlias = Mapping[str, int | float]


@dataclass(frozen=True)
class Seen:
    """What a rule found: how bad it is, since which update, and the numbers that say so."""

    level: Level
    update: int
    text: str


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong with a run. Nothing here is of one run."""

    name: str
    title: str  # what is wrong, in one line
    watches: tuple[str, ...]  # metrics
    limits: Thresholds  # the thresholds, by names that the page shows
    when: str  # in words, with {limits} in braces
    look_at: str
    next: str
    check: Callable[[RunEvidence, Thresholds], Seen | None] = field(repr=False)
    follows: tuple[str, ...] = ()  # rules that, where they speak too, are the cause of this

    @property
    def condition(self) -> str:
        """When it speaks, with its thresholds."""
        return self.when.format(**{name: f"{limit:g}" for name, limit in self.limits.items()})


@dataclass(frozen=True)
class Alert:
    """A rule with what it found in a run."""

    rule: Rule
    seen: Seen
    follows_from: tuple[str, ...] = ()  # rules that speak too, and of which this is a consequence

    @property
    def is_consequence(self) -> bool:
        """Whether another rule names the cause."""
        return bool(self.follows_from)

    def record(self, update: int | None = None) -> Mapping[str, object]:
        """A line of alerts.jsonl: `update` is the one after which it was told, `since` the first that shows it."""
        return {
            "update": self.seen.update if update is None else update,
            "level": self.seen.level,
            "rule": self.rule.name,
            "title": self.rule.title,
            "text": self.seen.text,
            "look_at": self.rule.look_at,
            "next": self.rule.next,
            "since": self.seen.update,
            "follows_from": list(self.follows_from),
        }
