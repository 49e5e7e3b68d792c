"""What the page says of a run's health: the verdict in a word, a sentence, and its evidence."""

from collections.abc import Mapping, Sequence
from typing import Any

from nearstep.reports.health.evidence import RunEvidence
from nearstep.reports.health.verdict import judge
from nearstep.reports.run_folder import Line

WORDS = {"healthy": "Healthy", "watch": "Watch it", "ill": "Ill", "unknown": "Not known yet"}
SENTENCES = {
    "healthy": "No rule finds anything wrong in the metrics so far.",
    "watch": "Something may go wrong; causes stand before what follows from them.",
    "ill": "This run does not learn what it should; causes stand before what follows from them.",
    "unknown": "No update is logged.",
}


def health(lines: Sequence[Line], settings: Mapping[str, Any], alerts: Sequence[Line]) -> dict[str, Any]:
    """The verdict by all metrics of a run, and what was told in its course that holds no more."""
    verdict = judge(RunEvidence.of(lines, settings))
    evidence = [alert.record(verdict.update) for alert in verdict.alerts]
    found = {alert["rule"] for alert in evidence}
    return {
        "state": verdict.state,
        "title": WORDS[verdict.state],
        "text": SENTENCES[verdict.state],
        "evidence": evidence,
        "past": list({alert["rule"]: alert for alert in alerts if alert["rule"] not in found}.values()),
    }
