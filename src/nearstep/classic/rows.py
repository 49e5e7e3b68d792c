"""How the tensors that a loop hands over become rows of a rollout; each that cannot be used is named."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearstep.common.errors import DataError, shorten
from nearstep.types import Prompts, Rollout


def checked_rows(name: str, rows: Any, size: int | None = None) -> list[list[int]]:
    """Token ids of each row. Raises DataError for rows that are too many or too few, empty, or no ids."""
    if isinstance(rows, Tensor) or not isinstance(rows, list | tuple):
        raise DataError(f"{name}: got {type(rows).__name__}; give a list with a tensor of token ids for each row")
    if size is not None and len(rows) != size:
        raise DataError(f"{name} has {len(rows)} rows, and batch_size = {size}: give as many, or another batch_size")
    return [_ids(f"{name}[{number}]", row) for number, row in enumerate(rows)]


def _ids(name: str, row: Any) -> list[int]:
    if not isinstance(row, Tensor):
        raise DataError(f"{name}: got {type(row).__name__}; give a tensor of token ids")
    if row.dim() == 2 and len(row) == 1:
        row = row[0]  # what `generate` gives for a single query
    if row.dim() != 1 or row.is_floating_point() or row.dtype == torch.bool:
        raise DataError(f"{name} has shape {tuple(row.shape)} and type {row.dtype}: give one row of whole numbers")
    ids: list[int] = row.tolist()
    if not ids:
        raise DataError(f"{name} is empty: give at least one token")
    return ids


def checked_scores(scores: Any, size: int) -> Tensor:
    """One finite number for each row. Raises DataError naming the first that is none."""
    given = list(scores.unbind()) if isinstance(scores, Tensor) and scores.dim() == 1 else scores
    if not isinstance(given, list | tuple) or len(given) != size:
        count = len(given) if isinstance(given, list | tuple) else shorten(given)
        raise DataError(f"scores: got {count}; give a number for each of the {size} rows (batch_size)")
    numbers = []
    for number, score in enumerate(given):
        if isinstance(score, Tensor) and score.numel() == 1:
            score = score.item()
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise DataError(f"scores[{number}] = {shorten(score)} must be one finite number")
        numbers.append(float(score))
    return torch.tensor(numbers)


def checked_masks(masks: Any, responses: Sequence[Sequence[int]]) -> list[list[bool]]:
    """For each token of a response whether the policy chose it: all where no masks are given."""
    if masks is None:
        return [[True] * len(ids) for ids in responses]
    if not isinstance(masks, list | tuple) or len(masks) != len(responses):
        raise DataError(f"response_masks: give a tensor for each of the {len(responses)} responses")
    found = []
    for number, (mask, ids) in enumerate(zip(masks, responses, strict=True)):
        if not isinstance(mask, Tensor) or mask.shape != (len(ids),):
            raise DataError(f"response_masks[{number}] must have an entry for each of the {len(ids)} tokens")
        chosen = [bool(each) for each in mask.tolist()]
        if not any(chosen):
            raise DataError(f"response_masks[{number}] leaves no token that the policy chose")
        found.append(chosen)
    return found


def rows_as_prompts(queries: Sequence[Sequence[int]], texts: Sequence[str], first: int) -> Prompts:
    """Prompts whose rows are counted from `first` on."""
    return Prompts([list(ids) for ids in queries], list(texts), {}, [*range(first, first + len(queries))])


def rollout_of_rows(
    queries: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    chosen: Sequence[Sequence[bool]],
    stop_ids: Sequence[int],
    version: int,
    device: torch.device,
) -> Rollout:
    """The rows back to back; their log-probs, which nobody has recorded, stand as 0."""
    rows = list(zip(queries, responses, chosen, strict=True))
    tokens = [token for query, response, _ in rows for token in (*query, *response)]
    is_action = [each for query, _, own in rows for each in (*[False] * len(query), *own)]
    return Rollout(
        tokens=torch.tensor(tokens, device=device),
        is_action=torch.tensor(is_action, device=device),
        row_lengths=torch.tensor([len(query) + len(response) for query, response, _ in rows], device=device),
        logprobs=torch.zeros(sum(is_action), device=device),
        finished=torch.tensor([response[-1] in stop_ids for _, response, _ in rows], device=device),
        policy_version=torch.full((len(rows),), version, device=device),
    )
