"""The report of a finished reward model: a table for people, report.json for programs."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from nearstep.reward_modeling.measures import Band, GradeMeasures, PairMeasures


@dataclass(frozen=True)
class RewardReport:
    """How the model does on texts that training did not see; None where none were kept for that."""

    objective: str
    steps: int
    trained_on: int
    unit: str  # of what it was trained on: pairs, texts, or prompts with several answers
    held_out: PairMeasures | GradeMeasures | None
    normalized: str  # what the head was put to: none, mean, mean_and_std, level
    offset: float  # what was added to every reward after training
    left_out: float = 0.0  # mean of the scores that were learnt, where rewards are told without it

    def write(self, path: Path) -> None:
        """Write strict JSON; what is no number there stands as null."""
        path.write_text(json.dumps(_plain(asdict(self)), indent=2) + "\n", encoding="utf-8")

    def tables(self) -> list[Table]:
        """The measures as tables; none where there are no measures."""
        match self.held_out:
            case PairMeasures() as found:
                bands = {"gap of rewards": found.by_reward_gap, "gap of labels": found.by_label_gap}
                return [_pair_table(found), *(_band_table(key, band) for key, band in bands.items() if band)]
            case GradeMeasures() as found:
                return [_grade_table(found)]
        return []

    def remark(self) -> str | None:
        """The warning where the model is no better than chance on unseen texts."""
        match self.held_out:
            case PairMeasures() as found:
                is_chance = found.pairs > 0 and found.accuracy_low <= 0.5
            case GradeMeasures() as found:
                is_chance = not found.explained_variance > 0
            case None:
                return None
        if not is_chance:
            return None
        return (
            "On unseen texts this model is no better than chance, as far as these few texts can tell: PPO against it "
            "would follow noise. More data, more steps or a higher learning_rate may help; a larger held_out_share "
            "tells more exactly."
        )

    def facts(self) -> list[tuple[str, str]]:
        """The few numbers that a model card shows."""
        match self.held_out:
            case PairMeasures() as found:
                return [
                    (
                        "accuracy on unseen pairs",
                        f"{found.accuracy:.1%} ({found.accuracy_low:.1%} – {found.accuracy_high:.1%})",
                    ),
                    ("calibration error", f"{found.calibration_error:.3f}"),
                ]
            case GradeMeasures() as found:
                return [
                    ("rewards", f"scores less {self.left_out:.4g}" if self.left_out else "scores"),
                    ("correlation on unseen texts", f"{found.pearson:.3f}"),
                    ("mean squared error", f"{found.mean_squared_error:.4g}"),
                ]
        return []


def _pair_table(found: PairMeasures) -> Table:
    ties = f", {found.ties} ties apart" if found.ties else ""
    rows = [
        ("accuracy", f"{found.accuracy:.1%}", "pairs whose better text gets the higher reward"),
        ("95 % interval", f"{found.accuracy_low:.1%} – {found.accuracy_high:.1%}", "of the accuracy"),
        ("log loss", f"{found.log_loss:.3f}", "nats per pair; 0.693 knows nothing"),
        ("calibration error", f"{found.calibration_error:.3f}", "accuracy against promise, see below"),
        ("reward, better", f"{found.mean_chosen:.3f}", "mean of the better texts"),
        ("reward, worse", f"{found.mean_rejected:.3f}", "mean of the others"),
    ]
    if math.isfinite(found.gap_correlation):
        rows.append(("gap correlation", f"{found.gap_correlation:.3f}", "Pearson's, of gaps of rewards and of labels"))
    return _table(f"{found.pairs} unseen pairs{ties}", ("measure", "value", "meaning"), rows)


def _band_table(key: str, bands: Sequence[Band]) -> Table:
    """Accuracy by how far apart two texts are, beside σ(gap), which the rewards promise."""
    rows = [
        (f"{band.low:.2f} – {band.high:.2f}", f"{band.pairs}", f"{band.accuracy:.1%}", f"{band.predicted:.1%}")
        for band in bands
    ]
    return _table(f"By {key}", (key, "pairs", "accuracy", "promised"), rows)


def _grade_table(found: GradeMeasures) -> Table:
    rows = [
        ("correlation", f"{found.pearson:.3f}", "Pearson's, of rewards and target scores"),
        ("rank correlation", f"{found.spearman:.3f}", "Spearman's"),
        ("mean squared error", f"{found.mean_squared_error:.4g}", ""),
        ("mean absolute error", f"{found.mean_absolute_error:.4g}", ""),
        ("explained variance", f"{found.explained_variance:.3f}", "1 is perfect, 0 is as good as the mean"),
        ("order", f"{found.pair_accuracy:.1%}", "share of pairs of texts that the rewards order alike"),
    ]
    return _table(f"{found.texts} unseen texts", ("measure", "value", "meaning"), rows)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        in_words = column in (columns[0], "meaning")
        table.add_column(column, justify="left" if in_words else "right", no_wrap=not in_words, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _plain(value: object) -> object:
    """The same with None for what is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
