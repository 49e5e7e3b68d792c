"""What ratios are taken against, and what corrects for an engine that is not quite the trainer: settings, clashes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.axes import CORRECTIONS, ENGINES, is_own, listed, name_problems
from nearstep.config.settings import Problem, Settings, option, without_effect

FORM = ("correction_level", "correction_action", "correction_measure")
LIMITS = ("correction_low", "correction_high")


@dataclass(frozen=True, kw_only=True)
class CorrectionSettings(Settings):
    """What ratios are taken against, and what corrects for an engine that is not quite the trainer."""

    anchor: Literal["sampled", "recomputed", "interpolated"] = option(
        "sampled",
        "what ratios are taken against: log-probs recorded by the engine, computed anew by the trainer, or between the "
        "engine's and the current ones by the age of the row, without a forward pass",
    )
    correction: str = option(
        "auto",
        f"weight of a token's loss, trainer over engine probability within limits: {listed(CORRECTIONS)}. auto: what "
        "the other correction settings say, nothing without a limit; none: no weight. Needs anchor = recomputed or "
        "interpolated",
        is_place=True,
    )
    correction_level: Literal["token", "row", "row_mean"] = option(
        "token", "auto: what has a ratio of its own: a token, a row (product of its tokens), a row (geometric mean)"
    )
    correction_action: Literal["truncate", "mask", "reject"] = option(
        "truncate",
        "auto: beyond its limits the ratio is held there (truncate) or the loss is left out (mask; reject, whose "
        "weight is 1 within the limits)",
    )
    correction_measure: Literal["ratio", "k2", "k3", "largest"] = option(
        "ratio",
        "auto: what is held against the limits: the ratio, k2 = ½ log² or k3 = ratio − 1 − log of the tokens, or every "
        "token's ratio of the row (largest)",
    )
    correction_low: float | None = option(None, "lower limit of the correction, instead of its scheme's own", above=0)
    correction_high: float | None = option(None, "upper limit of the correction, instead of its scheme's own", above=0)
    correction_veto: bool = option(
        False, "leave out whole rows with a token whose trainer over engine probability is outside [0.0001, 100]"
    )


def correction_remarks(config: CorrectionSettings, engine: str, max_staleness: int) -> Iterator[str]:
    """Settings that mean nothing beside others."""
    corrected, limits = config.anchor != "sampled", (config.correction_low, config.correction_high)
    yield from without_effect(
        config,
        ("with anchor = sampled", not corrected, ("correction", *FORM, *LIMITS, "correction_veto")),
        (f"with correction = {config.correction}", corrected and config.correction != "auto", FORM),
        (
            f"with correction = {config.correction}",
            corrected and (config.correction == "none" or is_own(config.correction)),
            LIMITS,
        ),
        (
            "without correction_high and correction_low",
            corrected and config.correction == "auto" and limits == (None, None),
            FORM,
        ),
    )
    # What is built in samples from the newest weights, unless it runs ahead.
    if config.anchor == "interpolated" and engine in ENGINES and max_staleness == 0:
        yield (
            f"anchor = interpolated is that of sampled with engine = {engine}, whose rows are never older than "
            "the update that trains on them"
        )


def correction_problems(config: CorrectionSettings) -> Iterator[Problem]:
    """Combinations that are refused."""
    yield from name_problems("correction", config.correction, CORRECTIONS)
    low, high, measure = config.correction_low, config.correction_high, config.correction_measure
    if low is not None and high is not None and low > high:
        yield Problem(f"correction_low = {low:g} is above correction_high = {high:g}", LIMITS)
    if config.correction != "auto":
        return
    if config.correction_action == "truncate" and measure != "ratio":
        yield Problem(
            "correction_action = truncate holds the ratio at its limits, and correction_measure = "
            f"{measure} is another quantity: use mask or reject",
            ("correction_action", "correction_measure"),
        )
    if measure == "largest" and config.correction_level == "token":
        yield Problem(
            "correction_measure = largest looks at the tokens of a row: use correction_level = row or row_mean",
            ("correction_measure", "correction_level"),
        )
    if measure in ("k2", "k3") and low is not None:
        yield Problem(
            f"correction_measure = {measure} is 0 where engine and trainer agree: it has an upper limit alone, "
            "correction_high",
            ("correction_measure", "correction_low"),
        )
