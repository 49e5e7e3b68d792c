"""How the rows of several rounds of generation become one batch: put one behind the other, and chosen by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nearstep.algorithm.ragged import take_rows
from nearstep.metrics import Metrics
from nearstep.types import Prompts, Rollout, Scores


@dataclass(frozen=True)
class ScoredRows:
    """Prompts, what was answered, and how it scored: rows of one process, all of one round or of several."""

    prompts: Prompts
    rollout: Rollout
    scores: Scores

    def __len__(self) -> int:
        return len(self.rollout)

    def select(self, rows: Sequence[int]) -> "ScoredRows":
        """The given rows, in the given order."""
        chosen = torch.tensor(list(rows), dtype=torch.long, device=self.rollout.tokens.device)
        return ScoredRows(
            select_prompts(self.prompts, rows),
            self.rollout.select(chosen),
            select_scores(self.scores, rows, self.rollout),
        )

    def with_rows(self, rows: Sequence[int], new: "ScoredRows") -> "ScoredRows":
        """The same batch with other rows in the place of some."""
        order = list(range(len(self)))
        for number, row in enumerate(rows):
            order[row] = len(self) + number
        return joined(self, new).select(order)


def joined(one: ScoredRows, other: ScoredRows) -> ScoredRows:
    """The rows of both, one behind the other."""
    return ScoredRows(
        join_prompts(one.prompts, other.prompts),
        _one_behind_the_other(one.rollout, other.rollout),
        join_scores(one, other),
    )


def select_prompts(prompts: Prompts, rows: Sequence[int]) -> Prompts:
    """Prompts of the given rows."""
    return Prompts(
        ids=[prompts.ids[row] for row in rows],
        inputs=[prompts.inputs[row] for row in rows],
        columns={name: [column[row] for row in rows] for name, column in prompts.columns.items()},
        episodes=[prompts.episodes[row] for row in rows],
    )


def join_prompts(one: Prompts, other: Prompts) -> Prompts:
    """The prompts of both, which have the same columns."""
    return Prompts(
        ids=one.ids + other.ids,
        inputs=one.inputs + other.inputs,
        columns={name: column + other.columns[name] for name, column in one.columns.items()},
        episodes=one.episodes + other.episodes,
    )


def select_scores(scores: Scores, rows: Sequence[int], rollout: Rollout) -> Scores:
    """Scores of the given rows of the rollout that they belong to. What functions reported of the whole stays."""
    chosen = torch.tensor(list(rows), dtype=torch.long, device=scores.total.device)
    dense = None if scores.dense is None else scores.dense[take_rows(rollout.action_counts, chosen)]
    return replace(
        scores,
        total=scores.total[chosen],
        parts={name: part[chosen] for name, part in scores.parts.items()},
        extras={name: [column[row] for row in rows] for name, column in scores.extras.items()},
        failures={
            name: {place: why[row] for place, row in enumerate(rows) if row in why}
            for name, why in scores.failures.items()
        },
        dense=dense,
    )


def join_scores(one: ScoredRows, other: ScoredRows) -> Scores:
    """The scores of both. Where one of them lacks a part it did not apply, where it lacks a column that is empty."""
    first, second = one.scores, other.scores
    if first.dense is None and second.dense is None:
        dense = None
    else:
        dense = torch.cat([
            torch.zeros_like(each.rollout.logprobs) if each.scores.dense is None else each.scores.dense
            for each in (one, other)
        ])  # fmt: skip
    nothing = [scores.total.new_full(scores.total.shape, torch.nan) for scores in (first, second)]
    return Scores(
        total=torch.cat([first.total, second.total]),
        parts={
            name: torch.cat([first.parts.get(name, nothing[0]), second.parts.get(name, nothing[1])])
            for name in first.parts | second.parts
        },
        extras={
            name: [*first.extras.get(name, [None] * len(one)), *second.extras.get(name, [None] * len(other))]
            for name in first.extras | second.extras
        },
        metrics=sum((first.metrics, second.metrics), start=Metrics()),
        failures={
            name: {
                **first.failures.get(name, {}),
                **{len(one) + row: why for row, why in second.failures.get(name, {}).items()},
            }
            for name in first.failures | second.failures
        },
        dense=dense,
        weights=first.weights | second.weights,
    )


def _one_behind_the_other(one: Any, other: Any) -> Any:
    """Two values of one type: tensors and lists end to end, dataclasses field by field."""
    if one is None and other is None:
        return None
    if isinstance(one, Tensor):
        return torch.cat([one, other])
    if isinstance(one, list):
        return one + other
    if isinstance(one, Mapping):
        return {name: _one_behind_the_other(values, other[name]) for name, values in one.items()}
    if is_dataclass(one) and not isinstance(one, type):
        parts = {each.name: _one_behind_the_other(vars(one)[each.name], vars(other)[each.name]) for each in fields(one)}
        return replace(one, **parts)
    raise TypeError(f"rows of a {type(one).__name__} cannot be put behind those of a {type(other).__name__}")
