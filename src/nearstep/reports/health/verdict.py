"""The verdict on a run: healthy, watch or ill, and what is the cause of what."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from nearstep.reports.health import hacking_rules, response_rules, reward_rules, sampling_rules, step_rules
from nearstep.reports.health.evidence import RunEvidence
from nearstep.reports.health.rule import LEVELS, Alert, Rule
from nearstep.reports.run_folder import RunFolder

HealthState: TypeAlias = Literal["healthy", "watch", "ill", "unknown"]

# In the order of causes: what is wrong before anything is learned comes first, then what spoils most.
SETUP = ("negative_weight", "inverted", "never_ends", "no_spread", "critic_frozen")
_FOUND = (*step_rules.RULES, *reward_rules.RULES, *hacking_rules.RULES, *response_rules.RULES)
RULES: tuple[Rule, ...] = (
    *sampling_rules.RULES,
    *(rule for rule in _FOUND if rule.name in SETUP),
    *(rule for rule in _FOUND if rule.name not in SETUP),
)


@dataclass(frozen=True)
class Verdict:
    """What the rules say of a run after an update: alerts, causes before what follows from them."""

    update: int
    alerts: Sequence[Alert]

    @property
    def state(self) -> HealthState:
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

    def record(self) -> Mapping[str, object]:
        """The verdict as plain values."""
        cause = self.cause
        return {
            "verdict": self.state,
            "update": self.update,
            "cause": None if cause is None else cause.rule.name,
            "alerts": [alert.record(self.update) for alert in self.alerts],
        }


def judge(evidence: RunEvidence) -> Verdict:
    """Hold the evidence against every rule."""
    found = [Alert(rule, seen) for rule in RULES if (seen := rule.check(evidence, rule.limits)) is not None]
    return Verdict(evidence.update, ranked(found))


def judge_run(run: RunFolder) -> Verdict:
    """The same by what a run left in its folder."""
    return judge(RunEvidence.of([*run.metrics, *run.evaluations], run.settings))


def ranked(alerts: Sequence[Alert]) -> list[Alert]:
    """What follows from nothing else first; among them errors before warnings, then in the order of the rules.

    An alert follows from those that its rule names, if they are no mere remarks and were there when it began.
    """
    began = {alert.rule.name: alert.seen.update for alert in alerts if alert.seen.level != "info"}

    def causes(alert: Alert) -> tuple[str, ...]:
        return tuple(name for name in alert.rule.follows if name in began and began[name] <= alert.seen.update)

    return sorted(
        (replace(alert, follows_from=causes(alert)) for alert in alerts),
        key=lambda alert: (alert.is_consequence, -LEVELS.index(alert.seen.level), RULES.index(alert.rule)),
    )
