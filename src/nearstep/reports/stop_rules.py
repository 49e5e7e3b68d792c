"""When a run ends before its last update: the KL is too large, or the score is high enough."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nearstep.config.evaluation import EvaluationSettings
from nearstep.reports.metrics import Numbers


@dataclass
class StopRules:
    """`stop_kl` and `stop_score`, each of which must hold `stop_patience` times in a row."""

    settings: EvaluationSettings
    by_evaluation: bool  # whether stop_score looks at evaluations
    score_name: str = "objective/scores"  # of evaluations
    in_a_row: dict[str, int] = field(default_factory=dict)

    def after_update(self, numbers: Numbers) -> str | None:
        """Why the run ends after an update with these metrics; None where it goes on."""
        settings = self.settings
        kl, score = numbers.get("objective/kl"), numbers.get("objective/scores")
        too_far = settings.stop_kl is not None and kl is not None and kl > settings.stop_kl
        why = self._count("stop_kl", too_far, f"objective/kl = {kl} is above stop_kl = {settings.stop_kl}")
        return why or (None if self.by_evaluation else self._reached(score, "objective/scores"))

    def after_evaluation(self, numbers: Numbers) -> str | None:
        """Why the run ends after an evaluation; None where it goes on."""
        return self._reached(numbers.get(self.score_name), f"eval/{self.score_name}") if self.by_evaluation else None

    def recall(self, in_a_row: Mapping[str, int]) -> None:
        """Know again how often the rules have held."""
        self.in_a_row = dict(in_a_row)

    def _reached(self, score: float | None, name: str) -> str | None:
        wanted = self.settings.stop_score
        good = wanted is not None and score is not None and score >= wanted
        return self._count("stop_score", good, f"{name} = {score} has reached stop_score = {wanted}")

    def _count(self, rule: str, holds: bool, why: str) -> str | None:
        self.in_a_row[rule] = self.in_a_row.get(rule, 0) + 1 if holds else 0
        times = self.settings.stop_patience
        if self.in_a_row[rule] < times:
            return None
        return why + (f" {times} times in a row" if times > 1 else "")
