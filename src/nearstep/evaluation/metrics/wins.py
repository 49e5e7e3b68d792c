"""How often one side beats the other, and how often it would if both wrote equally much."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nearstep.common.intervals import wilson
from nearstep.evaluation.metrics.figures import (
    Bootstrap,
    DrawnPrompts,
    Figure,
    Floats,
    grouped,
    is_number,
    percentiles,
    share,
)

NOTHING = "no completion has an answer beside it"
RIDGE = 1.0  # of the length's coefficient: a normal prior of variance 1
STEPS = 100  # of Newton's method, of which it needs about six


def win_result(ours: float, theirs: float) -> float | None:
    """1 where ours has the higher reward, ½ for a tie, 0 else; None where either has none."""
    if not (is_number(ours) and is_number(theirs)):
        return None
    return 0.5 if ours == theirs else float(ours > theirs)


def win_rate(results: Sequence[int | float | None], prompts: Sequence[int], bootstrap: Bootstrap) -> Figure:
    """The mean of results: wins, and half of the ties. n counts comparisons."""
    return share(results, prompts, bootstrap, why=NOTHING)


def length_controlled_win_rate(
    results: Sequence[int | float | None], more: Sequence[int | float], prompts: Sequence[int], bootstrap: Bootstrap
) -> Figure:
    """σ(θ) of P(win) = σ(θ + φ·tanh(Δ / sd(Δ))): the win rate where both sides wrote equally much.

    `more` is Δ, the length of ours less that of theirs. φ has a ridge, θ none, so that without differences in length
    this is the win rate. Source: Dubois et al. 2024 (2404.04475), without their term for the prompt's difficulty.
    """
    kept = [(r, m, p) for r, m, p in zip(results, more, prompts, strict=True) if r is not None]
    left_out = len(results) - len(kept)
    if not kept:
        return Figure.none(NOTHING, left_out)
    won, lengths = np.array([r for r, _, _ in kept]), np.array([float(m) for _, m, _ in kept])
    groups = [np.array(group) for group in grouped(range(len(kept)), [p for _, _, p in kept])]
    value = LengthModel.fit(won, lengths).rate
    if len(groups) == 1:
        return Figure(value, len(kept), 1, left_out=left_out)
    if won.min() == won.max() and len(groups) == len(kept):  # every draw would say the same
        return Figure(value, len(kept), len(groups), *wilson(value, len(kept)), "Wilson", left_out)

    def drawn_rate(drawn: DrawnPrompts) -> float:
        rows = np.concatenate([groups[each] for each in drawn])
        return LengthModel.fit(won[rows], lengths[rows]).rate

    low, high = percentiles(bootstrap.statistic(drawn_rate, len(groups)))
    return Figure(value, len(kept), len(groups), low, high, "bootstrap", left_out)


@dataclass(frozen=True)
class LengthModel:
    """P(win) = σ(θ + φ·tanh(Δ / sd(Δ))); `rate` is σ(θ)."""

    rate: float
    length_effect: float  # φ

    @staticmethod
    def fit(won: Floats, more: Floats) -> "LengthModel":
        """The most likely model under the ridge, by Newton's method."""
        if won.min() == won.max() and won[0] in (0.0, 1.0):
            return LengthModel(float(won[0]), 0.0)  # θ would go to infinity
        spread = more.std()
        term = np.tanh(more / spread) if spread > 0 else np.zeros_like(more)
        design = np.stack([np.ones_like(term), term], axis=1)
        penalty = np.diag([0.0, RIDGE])
        weights = np.zeros(2)
        for _ in range(STEPS):
            chance = _sigmoid(design @ weights)
            slope = design.T @ (won - chance) - penalty @ weights
            curve = (design * (chance * (1 - chance))[:, None]).T @ design + penalty
            step = np.linalg.solve(curve, slope)
            weights = weights + step * min(1.0, 4.0 / max(np.abs(step).max(), 1e-12))  # no leap to where all is flat
            if np.abs(step).max() < 1e-10:
                break
        return LengthModel(float(_sigmoid(weights[:1])[0]), float(weights[1]))


def _sigmoid(values: Floats) -> Floats:
    found: Floats = 0.5 * (1 + np.tanh(values / 2))
    return found
