"""The verdict on a run: healthy, watch or ill, and what is the cause of what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nearstep.reports.health import response_rules, reward_rules, sampling_rules, step_rules
from nearstep.reports.health.evidence import Evidence
from nearstep.reports.health.rule import LEVELS, Alert, Rule

State: TypeAlias = Literal["healthy", "watch", "ill", "unknown"]

# In the order of causes: what spoils everything comes first.
RULES: tuple[Rule, ...] = (*sampling_rules.RULES, *step_rules.RULES, *reward_rules.RULES, *response_rules.RULES)


@dataclass(frozen=True)
class Verdict:
    """What the rules say of a run after an update: alerts, causes before what follows from them."""

    update: int
    alerts: Sequence[Alert]

    @property
    def state(self) -> State:
        """ill: an error; watch: a warning; unknown: no update was logged."""
        levels = {alert.seen.level for alert in self.alerts}
        if "error" in levels:
            return "ill"
        if "warn" in levels:
            return "watch"
        return "healthy" if self.update else "unknown"

    @property
    def cause(self) -> Alert | None:
        """The first of the alerts that make the run what it is; None for a healthy one."""
        worst = {"ill": "error", "watch": "warn"}.get(self.state)
        return next((alert for alert in self.alerts if alert.seen.level == worst), None)

    def causes_of(self, alert: Alert) -> list[str]:
        """Names of the rules that speak too, and of which this is a consequence."""
        return [other.rule.name for other in self.alerts if other.rule.name in alert.rule.follows]

    def record(self) -> Mapping[str, object]:
        """The verdict as plain values."""
        cause = self.cause
        return {
            "verdict": self.state,
            "update": self.update,
            "cause": None if cause is None else cause.rule.name,
            "alerts": [{**alert.record(), "follows_from": self.causes_of(alert)} for alert in self.alerts],
        }


def judge(evidence: Evidence) -> Verdict:
    """Hold the evidence against every rule."""
    found = [Alert(rule, seen) for rule in RULES if (seen := rule.check(evidence, rule.limits)) is not None]
    return Verdict(evidence.update, ranked(found))


def ranked(alerts: Sequence[Alert]) -> list[Alert]:
    """Errors before warnings; among them what follows from nothing else that is as bad first, then by rule."""
    serious = {alert.rule.name for alert in alerts if alert.seen.level != "info"}

    def place(alert: Alert) -> tuple[bool, int, int]:
        follows = not serious.isdisjoint(alert.rule.follows)
        return follows, -LEVELS.index(alert.seen.level), RULES.index(alert.rule)

    return sorted(alerts, key=place)
