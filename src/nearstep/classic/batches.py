"""How a data set becomes the batches of a loop, each process with rows of its own."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch

from nearstep.classic.config import ClassicPPOConfig
from nearstep.common.errors import DataError
from nearstep.common.random_streams import stream


@dataclass(frozen=True)
class Batches:
    """What a loop goes over, as often as it likes: each pass has an order of its own, by seed and steps so far."""

    count: int  # of one pass
    draw: Callable[[], Iterator[Any]]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return self.draw()


def dataset_batches(
    dataset: Any,
    config: ClassicPPOConfig,
    collator: Callable[[list[Any]], Any] | None,
    steps: Callable[[], int],
    rank: int,
    world_size: int,
) -> Batches:
    """The rows of a data set, shuffled; `steps` counts those that were taken so far.

    Raises DataError where there is no data set, or it fills no batch.
    """
    if dataset is None:
        raise DataError("dataloader: PPOTrainer was given no dataset")
    rows, size = len(dataset), config.batch_size * world_size
    if rows < size:
        raise DataError(f"dataset has {rows} rows, and a batch takes {size}: give a smaller batch_size")
    passes = count()

    def draw() -> Iterator[Any]:
        after, number = steps(), next(passes)
        draws = stream(config.seed, "dataloader", after, *([number] if number else []))
        order = torch.randperm(rows, generator=draws).tolist()
        return _batches(dataset, order, size, collator or _columns, rank, config.batch_size)

    return Batches(rows // size, draw)


def _batches(
    dataset: Any, order: list[int], size: int, collator: Callable[[list[Any]], Any], rank: int, own: int
) -> Iterator[Any]:
    for start in range(0, len(order) - size + 1, size):
        first = start + rank * own
        yield collator([dataset[row] for row in order[first : first + own]])


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows as columns; token ids become tensors."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if "input_ids" in columns:
        columns["input_ids"] = [torch.as_tensor(ids) for ids in columns["input_ids"]]
    return columns
