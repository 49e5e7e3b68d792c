"""Where the part of a tensor that lies in this process stands in the whole: as boxes, whatever the layout is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import cast

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from nearstep.scale.shards import own_piece, whole_tensor


@dataclass(frozen=True)
class Stretch:
    """Rows of one dimension that lie side by side in the whole and in the part."""

    whole: int  # where they begin in the whole tensor
    part: int  # and in the part
    length: int


@dataclass(frozen=True)
class Box:
    """A part of a tensor that is a block of the whole."""

    part: Tensor
    offsets: tuple[int, ...]  # of the block in the whole
    shape: torch.Size  # of the whole


def boxes_of(tensor: Tensor, part: Tensor | None = None) -> list[Box]:
    """What of a tensor lies here, as blocks that share its memory: nothing where its part is empty, one block for most
    layouts, several where matrices that are kept in one are divided each by itself.

    With `part` the blocks are of that tensor, which lies as this one's part does.
    """
    part = own_piece(tensor).detach() if part is None else part
    if not isinstance(tensor, DTensor):
        return [Box(part, (0,) * tensor.dim(), tensor.shape)]
    if part.numel() == 0:
        return []
    return [
        Box(_block(part, runs), tuple(run.whole for run in runs), tensor.shape)
        for runs in product(*_runs(tensor.shape, tensor.device_mesh, tensor.placements))
    ]


class Cutter:
    """Says which one block of each tensor this process writes. Every process asks for the same tensors in order."""

    def __init__(self, scattered: frozenset[str], place: int, processes: int) -> None:
        self._scattered, self._place, self._processes = scattered, place, processes
        self._loads = [0] * processes

    @staticmethod
    def of(tensors: Mapping[str, Tensor], everyone: Sequence[frozenset[str]], place: int) -> "Cutter":
        """`everyone` holds what `scattered` gave in each process, of which this is the one at `place`."""
        return Cutter(frozenset(tensors).intersection(frozenset().union(*everyone)), place, len(everyone))

    def own(self, name: str, tensor: Tensor) -> Box | None:
        """The block; None where another process writes all of it.

        A tensor that all have whole is one process's, by turns of size. One of which some process has several blocks
        is gathered, and cut anew: all processes call this.
        """
        if name in self._scattered:
            whole = whole_tensor(tensor)
            longest = max(range(whole.dim()), key=lambda dimension: whole.shape[dimension])
            sizes = [len(rows) for rows in torch.arange(whole.shape[longest]).tensor_split(self._processes)]
            first = sum(sizes[: self._place])
            offsets = tuple(first if dimension == longest else 0 for dimension in range(whole.dim()))
            part = whole.narrow(longest, first, sizes[self._place])
            return Box(part, offsets, whole.shape) if part.numel() else None
        if not isinstance(tensor, DTensor):
            writer = self._loads.index(min(self._loads))
            self._loads[writer] += max(tensor.nbytes, 1)
            return boxes_of(tensor)[0] if writer == self._place else None
        found = boxes_of(tensor)
        return found[0] if found else None


def scattered(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """The tensors of which this process has several blocks."""
    return frozenset(name for name, tensor in tensors.items() if len(boxes_of(tensor)) > 1)


def in_layout_of(like: Tensor, part: Tensor) -> DTensor:
    """The tensor whose part here is given, in the pieces in which another of its shape lies."""
    assert isinstance(like, DTensor), "it lies in pieces"
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


@cache
def _runs(shape: torch.Size, mesh: DeviceMesh, placements: tuple[Placement, ...]) -> tuple[tuple[Stretch, ...], ...]:
    """For each dimension the rows that lie here. Their numbers are dealt out as the tensor's own rows were."""
    found = []
    for dimension, size in enumerate(shape):
        along = [placement if _dealt_along(placement, dimension) else Replicate() for placement in placements]
        numbers = torch.arange(size, device=mesh.device_type)
        numbers = numbers.view([size if each == dimension else 1 for each in range(len(shape))])
        here = own_piece(distribute_tensor(numbers, mesh, along, src_data_rank=None)).flatten()
        starts = [0, *((here.diff() != 1).nonzero().flatten() + 1).tolist()]
        ends = [*starts[1:], len(here)]
        runs = [Stretch(int(here[start]), start, end - start) for start, end in zip(starts, ends, strict=True)]
        found.append(tuple(runs))
    return tuple(found)


def _dealt_along(placement: Placement, dimension: int) -> bool:
    """Whether a placement divides this dimension. That of several matrices in one is no `Shard`, but has its fields."""
    return not placement.is_replicate() and cast(Shard, placement).dim == dimension


def _block(part: Tensor, runs: Sequence[Stretch]) -> Tensor:
    for dimension, run in enumerate(runs):
        part = part.narrow(dimension, run.part, run.length)
    return part
