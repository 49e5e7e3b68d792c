"""How good rewards are on texts that training did not see: agreement with labels, calibration, error."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from nearstep.common.intervals import wilson

BANDS, PAIRS_IN_BAND = 5, 20
ORDERED_TEXTS = 2048  # their pairs are compared: two million


@dataclass(frozen=True)
class Band:
    """Some of the pairs: those whose two rewards lie about equally far apart, or whose labels do."""

    low: float
    high: float
    pairs: int
    accuracy: float
    predicted: float  # mean of σ(gap): the accuracy that a calibrated model would have


@dataclass(frozen=True)
class PairMeasures:
    """How rewards agree with preferences. A tie of rewards counts one half, pairs without a better text count not."""

    pairs: int
    ties: int  # pairs whose label is that neither is better
    accuracy: float
    accuracy_low: float  # Wilson's interval of 95 %
    accuracy_high: float
    log_loss: float  # −log of the probability that the model gives the label, nats per pair, ties included
    calibration_error: float  # mean of |accuracy − predicted| over the bands of reward gaps
    mean_chosen: float
    mean_rejected: float
    mean_gap: float
    gap_correlation: float  # Pearson's, of reward gaps and margins, ties apart; NaN where no margins differ
    by_reward_gap: tuple[Band, ...]
    by_label_gap: tuple[Band, ...]  # by margin, or by gap of scores; empty where neither is known


@dataclass(frozen=True)
class GradeMeasures:
    """How rewards agree with target scores."""

    texts: int
    mean_squared_error: float
    mean_absolute_error: float
    explained_variance: float  # 1 − Var(target − reward) / Var(target); NaN for constant targets
    pearson: float  # NaN where either side is constant
    spearman: float
    pair_accuracy: float  # share of the pairs of texts with different targets that the rewards order alike


def pair_measures(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    preferences: Float[Tensor, " pairs"],
    margins: Float[Tensor, " pairs"],
    *,
    bands: int | None = None,
) -> PairMeasures:
    """Measure rewards of pairs, at least one; chosen is the better text with probability `preferences`.

    There are five `bands` unless told, fewer where each would hold less than twenty pairs.
    """
    gaps, preferences = (chosen - rejected).double(), preferences.double()
    # A label below ½ says that the other text is the better one.
    signed = torch.where(preferences < 0.5, -gaps, gaps)
    clear = preferences != 0.5
    right = ((signed > 0).double() + 0.5 * (signed == 0))[clear]
    count = len(right)
    bands = bands or max(1, min(BANDS, count // PAIRS_IN_BAND))
    accuracy = _mean(right)
    low, high = wilson(accuracy, count)
    by_gap = _bands(signed[clear].abs(), right, signed[clear].abs().sigmoid(), bands)
    log_loss = -(preferences * logsigmoid(gaps) + (1 - preferences) * logsigmoid(-gaps))
    has_margins = bool(margins[clear].any())
    return PairMeasures(
        pairs=count,
        ties=len(gaps) - count,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        log_loss=_mean(log_loss),
        calibration_error=sum(band.pairs * abs(band.accuracy - band.predicted) for band in by_gap) / max(count, 1),
        mean_chosen=_mean(chosen),
        mean_rejected=_mean(rejected),
        mean_gap=_mean(signed[clear]),
        gap_correlation=correlation(signed[clear], margins.double()[clear]),
        by_reward_gap=by_gap,
        by_label_gap=_bands(margins.double()[clear], right, signed[clear].abs().sigmoid(), bands)
        if has_margins
        else (),
    )


def grade_measures(rewards: Float[Tensor, " texts"], targets: Float[Tensor, " texts"]) -> GradeMeasures:
    """Measure rewards of texts against their targets, at least one."""
    rewards, targets = rewards.double(), targets.double()
    errors = rewards - targets
    spread = targets.var(correction=0)
    return GradeMeasures(
        texts=len(rewards),
        mean_squared_error=_mean(errors.square()),
        mean_absolute_error=_mean(errors.abs()),
        explained_variance=math.nan if spread == 0 else 1 - (errors.var(correction=0) / spread).item(),
        pearson=correlation(rewards, targets),
        spearman=correlation(ranks(rewards), ranks(targets)),
        pair_accuracy=_ordered_alike(rewards, targets),
    )


def correlation(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> float:
    """Pearson's correlation; NaN where either side is constant or empty."""
    if len(a) == 0 or a.min() == a.max() or b.min() == b.max():
        return math.nan
    a, b = a - a.mean(), b - b.mean()
    found: float = (a @ b / (a.norm() * b.norm())).item()
    return found


def ranks(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Rank of every value from 1, ties sharing the mean of their ranks."""
    _, place, counts = values.unique(sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranked: Tensor = (last - (counts.double() - 1) / 2)[place]
    return ranked


def _bands(
    key: Float[Tensor, " pairs"], right: Float[Tensor, " pairs"], predicted: Float[Tensor, " pairs"], bands: int
) -> tuple[Band, ...]:
    """Bands of equally many pairs by `key`, fewer where there are few pairs; pairs of one key stay together."""
    if len(key) == 0:
        return ()
    edges = torch.quantile(key, torch.linspace(0, 1, bands + 1, dtype=torch.float64)).unique()
    inner = torch.bucketize(key, edges[1:-1], right=True)
    found = []
    for number, (low, high) in enumerate(pairwise(edges.tolist()) if len(edges) > 1 else [(edges.item(),) * 2]):
        inside = inner == number
        if inside.any():
            found.append(Band(low, high, int(inside.sum()), _mean(right[inside]), _mean(predicted[inside])))
    return tuple(found)


def _ordered_alike(rewards: Tensor, targets: Tensor) -> float:
    """Share of pairs of texts with different targets that the rewards order alike; equal rewards count one half."""
    rewards, targets = rewards[:ORDERED_TEXTS], targets[:ORDERED_TEXTS]
    first, second = torch.triu_indices(len(rewards), len(rewards), offset=1)
    agreement = (rewards[first] - rewards[second]) * (targets[first] - targets[second])
    clear = targets[first] != targets[second]
    return _mean(((agreement > 0).double() + 0.5 * (agreement == 0))[clear])


def _mean(values: Tensor) -> float:
    return values.double().mean().item() if len(values) else math.nan
