"""How far a step may go: the settings of trust regions, and which of them have no effect or clash."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nearstep.config.axes import (
    BAND_REGIONS,
    COMPARE_PROBABILITIES,
    COMPARE_TOKENS,
    DIVERGENCES,
    THRESHOLD_REGIONS,
    TRUST_REGIONS,
    listed,
)
from nearstep.config.settings import Problem, Settings, option, without_effect


@dataclass(frozen=True, kw_only=True)
class TrustRegionSettings(Settings):
    """How far a step may go."""

    trust_region: str = option("clip", f"how far a step may go: {listed(TRUST_REGIONS)}", is_place=True)
    ratio_level: Literal["token", "turn", "row"] = option(
        "token",
        "what has a ratio of its own: every token, or a turn or a whole response (the geometric mean of its tokens)",
    )
    cliprange: float = option(0.2, "clip, sat: the ratio leaves the region outside 1 ± this", above=0)
    cliprange_high: float | None = option(None, "clip, sat: upper side, if other than cliprange", above=0)
    dual_clip: float | None = option(
        None, "clip: bound on the ratio of tokens with a negative advantage; 3 is usual", above=1
    )
    divergence_low: float | None = option(
        None, "divergences: threshold where the policy falls; 0.15 for TV and 0.05 for KL if not given", above=0
    )
    divergence_high: float | None = option(
        None, "divergences: threshold where the policy rises; 0.15 for TV and 0.05 for KL if not given", above=0
    )
    divergence_top_k: int = option(20, "topk_tv and topk_kl: most probable tokens that are compared", at_least=1)
    region_threshold: float | None = option(
        None,
        "spo: distance of the ratio from 1 at which its weight is 0, 0.2 if not given; drpo: the same of π − μ, 12.5; "
        "cppo, trm: most |π − μ| of a token, 0.15; vaco: most mean |ratio − 1| of a row, 0.2",
        above=0,
    )
    region_low: float | None = option(
        None,
        "dis: least ratio of a token that counts, 0.2 if not given; cispo: least ratio it counts with, 0",
        at_least=0,
    )
    region_high: float | None = option(
        None, "dis: largest ratio of a token that counts, 4 if not given; cispo: largest it counts with, 5", above=0
    )
    sapo_tau: float = option(
        1.0, "sapo: how fast the weight falls from ratio 1 where the advantage is positive", above=0
    )
    sapo_tau_negative: float = option(1.05, "sapo: the same for the other advantages", above=0)
    cppo_floor: float = option(
        0.8, "cppo: weight of a row's last token in its budget; the first has 1", at_least=0, at_most=1
    )
    sat_share: float = option(
        0.1, "sat: share of a row's tokens whose band is narrowed, those that moved most", above=0, below=1
    )
    sat_contraction: float = option(0.5, "sat: width of their band, as a share of the usual", at_least=0, at_most=1)


def region_remarks(config: TrustRegionSettings) -> Iterator[str]:
    """Settings of other regions than the chosen one."""
    region, chosen = config.trust_region, f"with trust_region = {config.trust_region}"
    yield from without_effect(
        config,
        (chosen, region not in ("clip", "sat"), ("cliprange", "cliprange_high")),
        (chosen, region != "clip", ("dual_clip",)),
        (chosen, region not in DIVERGENCES, ("divergence_low", "divergence_high")),
        (chosen, not region.startswith("topk"), ("divergence_top_k",)),
        (chosen, region not in THRESHOLD_REGIONS, ("region_threshold",)),
        (chosen, region not in BAND_REGIONS, ("region_low", "region_high")),
        (chosen, region != "sapo", ("sapo_tau", "sapo_tau_negative")),
        (chosen, region != "cppo", ("cppo_floor",)),
        (chosen, region != "sat", ("sat_share", "sat_contraction")),
    )


def region_problems(config: TrustRegionSettings) -> Iterator[Problem]:
    """Combinations that are refused."""
    region = config.trust_region
    low, high = config.region_low, config.region_high
    if region in BAND_REGIONS and ((low is not None and low > 1) or (high is not None and high < 1)):
        yield Problem(
            f"trust_region = {region}: the ratio is 1 where nothing has moved yet, so region_low is at most 1 and "
            "region_high at least 1",
            ("region_low", "region_high"),
        )
    if config.ratio_level != "token" and region in (*COMPARE_PROBABILITIES, *COMPARE_TOKENS):
        what = "distributions of single tokens" if region in COMPARE_PROBABILITIES else "the ratios of a row's tokens"
        others = [name for name in TRUST_REGIONS if name not in (*COMPARE_PROBABILITIES, *COMPARE_TOKENS)]
        yield Problem(
            f"trust_region = {region} compares {what}: with ratio_level = {config.ratio_level} use one of "
            f"{', '.join(others)}",
            ("ratio_level", "trust_region"),
        )
