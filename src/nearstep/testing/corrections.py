"""The laws of corrections for an engine that is not quite the trainer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nearstep.algorithm.correction import CorrectionRule
from nearstep.algorithm.ragged import row_numbers, take_rows
from nearstep.algorithm.trust_regions import ActionRows
from nearstep.common.random_streams import stream
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold

COUNTS = (5, 1, 0, 40, 7, 2, 3)
# From hardly any difference through that of bfloat16 to an engine with other weights, and what underflows.
SPREADS = (1e-6, 1e-3, 0.05, 0.5, 3.0, 40.0)
CLOSE = 1e-5
SLIGHT = 1e-4  # of a log-prob: within the limits of any correction, in rows of any length here


@dataclass(frozen=True)
class SampledRows:
    """Log-probs of the sampled tokens by the trainer and by the engine, and where rows end."""

    trainer: Tensor
    engine: Tensor
    counts: Tensor

    @property
    def rows(self) -> ActionRows:
        """The rows, each sampled by the policy of its own number."""
        return ActionRows(self.counts, torch.arange(len(self.counts)))

    def take(self, rows: Tensor) -> "SampledRows":
        """The rows of the given numbers, in the given order."""
        actions = take_rows(self.counts, rows)
        return SampledRows(self.trainer[actions], self.engine[actions], self.counts[rows])


def check_correction(correction: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a correction to its laws. Raises ConformanceError with the first that is broken."""
    return hold(f"correction {type(correction).__name__}", correction, LAWS, skip)


def _samples() -> list[SampledRows]:
    """One batch for each spread, and one with tokens that a side holds for impossible."""
    draws, counts = stream(0, "conformance/corrections"), torch.tensor(COUNTS)
    found = []
    for spread in SPREADS:
        engine = -torch.rand(int(counts.sum()), generator=draws) * 6
        moved = engine + spread * torch.randn(len(engine), generator=draws)
        found.append(SampledRows(moved.clamp(max=0), engine, counts))
    impossible = found[2]
    trainer, engine = impossible.trainer.clone(), impossible.engine.clone()
    trainer[0], engine[-1] = -math.inf, -math.inf
    return [*found, replace(impossible, trainer=trainer, engine=engine)]


def _importance(correction: CorrectionRule, sampled: SampledRows) -> Tensor:
    return correction.importance(sampled.trainer, sampled.engine, sampled.rows)


def _protocol(correction: object) -> str | None:
    return lacks(correction, "correction")


def _one_weight_each(correction: CorrectionRule) -> str | None:
    samples = _samples()
    for sampled in (*samples, samples[0].take(torch.arange(0))):
        weight: object = _importance(correction, sampled)
        if not isinstance(weight, Tensor) or not weight.is_floating_point():
            return f"importance returned {weight!r}"
        if weight.shape != sampled.engine.shape:
            return f"importance has shape {list(weight.shape)} for {len(sampled.engine)} actions"
        if found := _first(sampled, ~(weight.isfinite() & (weight >= 0)), weight):
            return found
    return None


def _own_row(correction: CorrectionRule) -> str | None:
    for sampled in _samples():
        whole, rows = _importance(correction, sampled), torch.arange(len(COUNTS))
        parts = torch.cat([_importance(correction, sampled.take(part)) for part in rows.split(2)])
        if not torch.allclose(whole, parts, rtol=CLOSE, atol=CLOSE):
            differ = ~torch.isclose(whole, parts, rtol=CLOSE, atol=CLOSE)
            return f"{_first(sampled, differ, whole)}, and another in a batch of two rows"
        backwards = rows.flip(0)
        turned = _importance(correction, sampled.take(backwards))
        if not torch.allclose(turned, whole[take_rows(sampled.counts, backwards)], rtol=CLOSE, atol=CLOSE):
            return "rows in another order have other weights"
    return None


def _repeatable(correction: CorrectionRule) -> str | None:
    same = all(torch.equal(_importance(correction, each), _importance(correction, each)) for each in _samples())
    return None if same else "other weights when asked again"


def _inputs_untouched(correction: CorrectionRule) -> str | None:
    for sampled in _samples():
        trainer, engine, counts = sampled.trainer.clone(), sampled.engine.clone(), sampled.counts.clone()
        _importance(correction, sampled)
        kept = (torch.equal(trainer, sampled.trainer), torch.equal(engine, sampled.engine))
        if not all(kept) or not torch.equal(counts, sampled.counts):
            return "log-probs or action_counts were changed in place; work on copies"
    return None


def _agreement(correction: CorrectionRule) -> str | None:
    for sampled in _samples()[: len(SPREADS)]:
        agreed = replace(sampled, trainer=sampled.engine)
        weight = _importance(correction, agreed)
        if found := _first(agreed, weight != 1, weight):
            return found
    return None


def _direction(correction: CorrectionRule) -> str | None:
    for sampled in _samples()[: len(SPREADS)]:
        engine = sampled.engine.double() - 2 * SLIGHT
        likelier, rarer = (replace(sampled, trainer=engine + gap, engine=engine) for gap in (SLIGHT, -SLIGHT))
        weight, other = _importance(correction, likelier), _importance(correction, rarer)
        if found := _first(likelier, weight < other, weight):
            return f"{found}, and more where the trainer holds its row for less likely than the engine did"
    return None


def _first(sampled: SampledRows, wrong: Tensor, weight: Tensor) -> str | None:
    """The first action where `wrong` is true, described."""
    places = wrong.nonzero()
    if not len(places):
        return None
    place = int(places[0])
    row = int(row_numbers(sampled.counts)[place])
    return (
        f"an action of row {row} ({int(sampled.counts[row])} actions), trainer log p = "
        f"{float(sampled.trainer[place]):.6g}, engine log p = {float(sampled.engine[place]):.6g}, has "
        f"weight {float(weight[place]):g}"
    )


LAWS: tuple[Law[CorrectionRule], ...] = (
    Law("protocol", "it has importance(trainer, engine, rows)", _protocol),
    Law("one_weight_each", "every action has a finite weight from 0 on, and no action none", _one_weight_each),
    Law("inputs_untouched", "what it is given stays as it is", _inputs_untouched),
    Law("repeatable", "the same log-probs give the same weights again", _repeatable),
    Law("own_row", "a row's weights depend on that row alone, so that micro-batches change nothing", _own_row),
    Law("agreement", "where engine and trainer agree, every weight is 1", _agreement, False),
    Law("direction", "what the trainer holds for a little likelier than the engine weighs no less", _direction, False),
)
