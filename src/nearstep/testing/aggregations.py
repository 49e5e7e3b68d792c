"""The laws of loss aggregation."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearstep.algorithm.aggregation import LossAggregation, MinibatchCounts
from nearstep.algorithm.ragged import take_rows
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold

COUNTS = torch.tensor([3, 1, 0, 7, 2, 2])
LONG_AND_SHORT = torch.tensor([1, 7, 60, 1000])
CLOSE = 1e-6


def check_loss_aggregation(aggregation: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a loss aggregation to its laws. Raises ConformanceError with the first that is broken."""
    return hold(f"loss aggregation {type(aggregation).__name__}", aggregation, LAWS, skip)


def _protocol(aggregation: object) -> str | None:
    return lacks(aggregation, "loss_aggregation")


def _one_weight_each(aggregation: LossAggregation) -> str | None:
    for counts in (COUNTS, COUNTS[:0], COUNTS[2:3]):
        weights: object = aggregation.weights(counts)
        if not isinstance(weights, Tensor) or not weights.is_floating_point():
            return f"weights returned {weights!r}"
        if weights.shape != (int(counts.sum()),):
            return f"weights has shape {list(weights.shape)} for rows of {counts.tolist()} actions"
        if not bool((weights.isfinite() & (weights >= 0)).all()):
            return f"weights are {weights.tolist()} for rows of {counts.tolist()} actions"
    all_zero = not bool(aggregation.weights(LONG_AND_SHORT).any())
    return f"weights are all 0 for rows of {LONG_AND_SHORT.tolist()} actions" if all_zero else None


def _own_row(aggregation: LossAggregation) -> str | None:
    whole = aggregation.weights(COUNTS)
    parts = torch.cat([aggregation.weights(part) for part in COUNTS.split([2, 3, 1])])
    if not torch.allclose(whole, parts, atol=CLOSE):
        return f"{whole.tolist()} for rows of {COUNTS.tolist()} actions, {parts.tolist()} for the same in three parts"
    backwards = torch.arange(len(COUNTS)).flip(0)
    turned = aggregation.weights(COUNTS[backwards])
    expected = whole[take_rows(COUNTS, backwards)]
    return None if torch.allclose(turned, expected, atol=CLOSE) else "rows in another order have other weights"


def _divisor(aggregation: LossAggregation) -> str | None:
    for tokens, rows in ((15, 5), (1, 1), (0, 0)):
        divisor = _divided_by(aggregation, tokens, rows)
        if not (math.isfinite(divisor) and divisor > 0):
            return f"{divisor:g} for {tokens} tokens in {rows} rows; clamp(min=1)"
    return None


def _repeatable(aggregation: LossAggregation) -> str | None:
    one, other = (aggregation.weights(COUNTS) for _ in range(2))
    same = torch.equal(one, other) and _divided_by(aggregation, 15, 5) == _divided_by(aggregation, 15, 5)
    return None if same else "other weights or another divisor when asked again"


def _inputs_untouched(aggregation: LossAggregation) -> str | None:
    counts = COUNTS.clone()
    aggregation.weights(counts)
    return None if torch.equal(counts, COUNTS) else "action_counts was changed in place"


def _batch_size(aggregation: LossAggregation) -> str | None:
    """Every row twice: a mean stays what it is."""
    once, twice = (
        float(aggregation.weights(COUNTS.repeat(times)).sum()) / _divided_by(aggregation, 15 * times, 5 * times)
        for times in (1, 2)
    )
    return None if math.isclose(once, twice, rel_tol=CLOSE) else f"the loss goes from {once:g} to {twice:g}"


def _divided_by(aggregation: LossAggregation, tokens: int, rows: int) -> float:
    counts = MinibatchCounts(tokens=torch.tensor(tokens), rows=torch.tensor(rows))
    return float(aggregation.divisor(counts))


LAWS: tuple[Law[LossAggregation], ...] = (
    Law("protocol", "it has weights(action_counts) and divisor(counts)", _protocol),
    Law(
        "one_weight_each", "every action has a finite weight from 0 on, not all 0, and no action none", _one_weight_each
    ),
    Law("own_row", "a row's weights depend on that row alone, so that micro-batches change nothing", _own_row),
    Law("divisor", "the divisor is above 0, also for nothing", _divisor),
    Law("repeatable", "the same rows have the same weights again", _repeatable),
    Law("inputs_untouched", "what it is given stays as it is", _inputs_untouched),
    Law("batch_size", "with every row twice the loss is the same", _batch_size, False),
)
