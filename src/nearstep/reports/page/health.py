"""What the page says of a run's health: the verdict in a word, a sentence, and its evidence."""

from collections.abc import Sequence
from typing import Any

from nearstep.reports.run_folder import Line

WORST = {"error": "Ill", "warn": "Watch it", "info": "Healthy"}


def verdict(alerts: Sequence[Line]) -> dict[str, Any]:
    """Of the rules that spoke while the run went on, the newest of each."""
    newest = list({alert["rule"]: alert for alert in alerts}.values())
    levels = {alert["level"] for alert in newest}
    level = next((level for level in ("error", "warn") if level in levels), "good")
    title = WORST.get(level, "Nothing reported")
    return {"level": level, "title": title, "text": "", "evidence": newest}
