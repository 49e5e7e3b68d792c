"""Which correction of engine against trainer each name means, with its own limits."""

from collections.abc import Callable, Mapping

from nearstep.algorithm.correction import UNCORRECTED, Correction, CorrectionRule, Corrections
from nearstep.common.errors import ConfigError
from nearstep.config.correction import CorrectionSettings

VETO = Correction("row", "reject", "largest", 1e-4, 100.0)  # beyond that a ratio is a fault


def _explicit(config: CorrectionSettings) -> CorrectionRule:
    """What the settings say piece by piece; nothing where they name no limit."""
    low, high = config.correction_low, config.correction_high
    if low is None and high is None:
        return UNCORRECTED
    return Correction(config.correction_level, config.correction_action, config.correction_measure, low, high)


def _limits(config: CorrectionSettings, low: float | None, high: float) -> tuple[float | None, float]:
    """Those of a named scheme, where the settings do not say others."""
    given_low, given_high = config.correction_low, config.correction_high
    return low if given_low is None else given_low, high if given_high is None else given_high


def _mask_of_means(config: CorrectionSettings) -> Correction:
    return Correction("row_mean", "reject", "ratio", *_limits(config, 0.99, 1.01))


# Every name of config.axes has its line here; a test compares the two. docs/algorithms.md says where limits come from.
CORRECTIONS: Mapping[str, Callable[[CorrectionSettings], CorrectionRule]] = {
    "auto": _explicit,
    "none": lambda _: UNCORRECTED,
    "tis": lambda c: Correction("token", "truncate", "ratio", *_limits(c, None, 2.0)),
    "row_tis": lambda c: Correction("row", "truncate", "ratio", *_limits(c, None, 2.0)),
    "icepop": lambda c: Correction("token", "mask", "ratio", *_limits(c, 0.5, 5.0)),
    "mis": lambda c: Correction("row", "mask", "ratio", *_limits(c, None, 3.0)),
    "geo_mask": _mask_of_means,
    "seq_mask_tis": lambda c: Corrections((_mask_of_means(c), Correction("token"))),
}


def shipped_correction(config: CorrectionSettings) -> CorrectionRule:
    """The one that the settings name. Raises ConfigError where a given limit and the scheme's own cross."""
    try:
        return CORRECTIONS[config.correction](config)
    except ValueError as error:
        raise ConfigError(f"correction = {config.correction}: {error}: give both limits") from error


def with_veto(rule: CorrectionRule) -> CorrectionRule:
    """The same, with rows left out that hold a broken token."""
    return Corrections((VETO,)) if rule == UNCORRECTED else Corrections((VETO, rule))
