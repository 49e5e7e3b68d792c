"""Tensors of which every process writes its own part, and reads what its layout needs (torch.distributed.checkpoint).

The files are safetensors, one or more of each process: nothing in them is pickled. torch's own file of metadata would
be, so it is not written: where a part stands in the whole lies in each file's header, as torch's writer for Hugging
Face has it.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from nearstep.common.errors import CheckpointError
from nearstep.scale.boxes import Box, boxes_of, in_layout_of
from nearstep.scale.shards import own_piece

FILES = 8  # of each process: torch's writer has one of them in memory a second time
SMALLEST_FILE, LARGEST_FILE = 2**26, 2**30  # bytes, and one tensor may be larger


def write_boxes(
    folder: Path,
    boxes: Mapping[str, Box],
    sizes: Mapping[str, int],
    group: dist.ProcessGroup,
) -> None:
    """Write the blocks of this process; of one that several have, one writes it. All processes of the group call this.

    `sizes` are bytes of each whole tensor by name, the same everywhere. A failure of any process is raised on all.
    """
    part = sum(sizes.values()) // group.size()
    file_bytes = min(max(part // FILES, SMALLEST_FILE), LARGEST_FILE)
    numbers = _file_numbers(sizes, file_bytes * group.size())
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=numbers, save_distributed=True)
    parts = {name: box.part for name, box in boxes.items()}
    save(parts, storage_writer=writer, planner=_BlockWriter(boxes), process_group=group)


def own_files(folder: Path, rank: int) -> list[Path]:
    """The files that a process has written there."""
    return sorted(folder.glob(f"shard-{rank + 1:05}-*.safetensors"))


@dataclass(frozen=True)
class StoredTensors:
    """The tensors of a folder that `write_boxes` has filled, by whatever number of processes."""

    folder: Path
    entries: Mapping[str, TensorStorageMetadata]

    @staticmethod
    def open(folder: Path) -> "StoredTensors":
        """Look what is there. Raises CheckpointError where it is no such folder."""
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is missing")
        try:
            found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is damaged: {error}") from error
        return StoredTensors(
            folder, {name: each for name, each in found.items() if isinstance(each, TensorStorageMetadata)}
        )

    def whole(self, names: Iterable[str]) -> dict[str, Tensor]:
        """These tensors, each in one."""
        tensors = {name: self._empty(name) for name in names}
        self._read({name: boxes_of(tensor) for name, tensor in tensors.items()})
        return tensors

    def dealt(self, likes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """These tensors, each in the layout of the one that is given: of a tensor in pieces only this process's part is
        read. One of another shape than the given one comes whole."""
        in_pieces = {
            name: isinstance(like, DTensor) and like.shape == self._entry(name).size for name, like in likes.items()
        }
        tensors = {
            name: torch.empty(own_piece(like).shape, dtype=self._entry(name).properties.dtype)
            if in_pieces[name] else self._empty(name)
            for name, like in likes.items()
        }  # fmt: skip
        targets = {
            name: boxes_of(like if in_pieces[name] else tensors[name], tensors[name]) for name, like in likes.items()
        }
        self._read(targets)
        return {
            name: in_layout_of(like, tensors[name].to(own_piece(like).device)) if in_pieces[name] else tensors[name]
            for name, like in likes.items()
        }

    def require(self, names: Iterable[str]) -> None:
        """Raise CheckpointError where one of them is missing."""
        for name in names:
            self._entry(name)

    def _read(self, targets: Mapping[str, Sequence[Box]]) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            try:
                reader = HuggingFaceStorageReader(str(self.folder))
                load({}, storage_reader=reader, planner=_BlockReader(targets, self.entries), no_dist=True)
            except (CheckpointException, OSError, ValueError, LookupError, SafetensorError) as error:
                raise CheckpointError(f"{self.folder} is damaged: {error}") from error

    def _empty(self, name: str) -> Tensor:
        entry = self._entry(name)
        return torch.empty(entry.size, dtype=entry.properties.dtype)

    def _entry(self, name: str) -> TensorStorageMetadata:
        if name not in self.entries:
            raise CheckpointError(f"{self.folder}: {name} is missing")
        return self.entries[name]


class _BlockWriter(DefaultSavePlanner):
    """torch's planner, for blocks that are known: it would take every part of a tensor for one block."""

    def __init__(self, boxes: Mapping[str, Box]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._boxes = boxes

    def create_local_plan(self) -> SavePlan:
        """What this process could write."""
        self.plan = SavePlan([_write_item(name, box) for name, box in self._boxes.items()])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """What is written."""
        return self._boxes[write_item.index.fqn].part


class _BlockReader(DefaultLoadPlanner):
    """torch's planner, for blocks that are filled: the files' own blocks may be others."""

    def __init__(self, targets: Mapping[str, Sequence[Box]], entries: Mapping[str, TensorStorageMetadata]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._targets, self._entries = targets, entries

    def create_local_plan(self) -> LoadPlan:
        """What this process reads."""
        items: list[ReadItem] = []
        for name, boxes in self._targets.items():
            chunks = [ChunkStorageMetadata(torch.Size(box.offsets), box.part.shape) for box in boxes]
            items += create_read_items_for_chunk_list(name, self._entries[name], chunks)
        return LoadPlan(items)

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        """Where it goes."""
        target = self._targets[read_item.dest_index.fqn][read_item.dest_index.index or 0].part
        for dimension, (start, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(dimension, start, length)
        return target

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It was read into its place."""


def _write_item(name: str, box: Box) -> WriteItem:
    offsets = torch.Size(box.offsets)
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets, box.part.shape),
        properties=TensorProperties.create_from_tensor(box.part),
        size=box.shape,
    )
    return WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data)


def _file_numbers(sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """Into which of its files every process writes a tensor, counted from 1."""
    numbers, number, filled = {}, 1, 0
    for name, size in sizes.items():
        if filled and filled + size > most:
            number, filled = number + 1, 0
        numbers[name] = number
        filled += size
    return numbers
