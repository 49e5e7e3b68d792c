"""The rules beside a run: after every logged update, and what is new of what they say."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nearstep.reports.health.evidence import MetricsLine, RunEvidence
from nearstep.reports.health.rule import LEVELS, Alert, Level
from nearstep.reports.health.verdict import Verdict, judge
from nearstep.reports.run_folder import ALERTS, RunFolder

EVERY_UPDATE = 200  # up to here the rules look at every logged update, later at one in so many that costs stay even


class HealthWatch:
    """Holds the metrics so far. An alert is told once, and again where it becomes worse."""

    def __init__(self, settings: Mapping[str, object]) -> None:
        self._evidence = RunEvidence(settings)
        self._told: dict[str, Level] = {}
        self._lines = 0
        self._verdict = Verdict(0, ())

    def recall(self, lines: Sequence[MetricsLine], folder: Path, last: int) -> None:
        """Take in what a run that goes on has logged up to its update `last`, and what was told of it in its folder."""
        looked = max((count for count in range(1, len(lines) + 1) if _is_look(count)), default=0)
        for count, line in enumerate(lines, start=1):
            self._evidence.add(line)
            if count == looked:
                self._verdict = judge(self._evidence)
        self._lines = len(lines)
        for told in RunFolder(folder).lines(ALERTS, lambda update: update <= last) if lines else ():
            self._told[told["rule"]] = told["level"]

    def add(self, line: MetricsLine) -> list[Alert]:
        """Take in a line of metrics, and return what is new of what the rules say."""
        self._evidence.add(line)
        self._lines += 1
        if not _is_look(self._lines):
            return []
        self._verdict = judge(self._evidence)
        new = [alert for alert in self._verdict.alerts if self._is_new(alert)]
        self._told |= {alert.rule.name: alert.seen.level for alert in new}
        return new

    @property
    def level(self) -> int:
        """0 healthy, 1 watch, 2 ill, when the rules looked last."""
        return {"ill": 2, "watch": 1}.get(self._verdict.state, 0)

    def _is_new(self, alert: Alert) -> bool:
        told = self._told.get(alert.rule.name)
        return told is None or LEVELS.index(alert.seen.level) > LEVELS.index(told)


def _is_look(lines: int) -> bool:
    """Whether the rules look at so many lines of metrics."""
    return lines % (lines // EVERY_UPDATE + 1) == 0
