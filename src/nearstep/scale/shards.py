"""A tensor that may lie in pieces over processes: its piece here, the whole of it, and how a whole one is dealt out."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Protocol, TypeVar, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor

Item = TypeVar("Item", bound=Tensor)


@runtime_checkable
class InPieces(Protocol):
    """A tensor that lies over processes in a form of its own."""

    def own(self) -> Tensor:
        """What of it lies in this process, flat, sharing its memory."""

    def whole(self) -> Tensor:
        """All of it. Every process calls this."""


def own_piece(tensor: Tensor | InPieces) -> Tensor:
    """What of a tensor lies in this process, sharing its memory; the tensor itself where it is whole."""
    if isinstance(tensor, DTensor):
        return tensor.to_local()
    return tensor if isinstance(tensor, Tensor) else tensor.own()


def whole_tensor(tensor: Tensor | InPieces) -> Tensor:
    """All of a tensor. Every process that holds a piece of it calls this, and gets the whole for a moment."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor().detach()
    return tensor if isinstance(tensor, Tensor) else tensor.whole()


def dealt_like(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor in the pieces in which another of its shape lies. Each process has the whole one and keeps its piece;
    one that lies in pieces stays as it is."""
    if not isinstance(like, DTensor) or whole.shape != like.shape or isinstance(whole, DTensor):
        return whole
    return distribute_tensor(whole.to(own_piece(like).device), like.device_mesh, like.placements, src_data_rank=None)


def norm_over_processes(pieces: Sequence[Tensor], device: torch.device) -> Tensor:
    """Euclidean norm of gradients of which every process holds another part."""
    squares = nn.utils.get_total_norm(pieces).to(device).square()
    dist.all_reduce(squares)
    return squares.sqrt()


def norm_of_pieces(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Euclidean norm of gradients, some in pieces, each over dimensions of a mesh of its own, and some whole and alike
    everywhere."""
    groups: dict[tuple[DeviceMesh | None, tuple[int, ...]], list[Tensor]] = {}
    for each in gradients:
        groups.setdefault((_mesh(each), _dealt(each)), []).append(own_piece(each))
    total = torch.zeros((), device=device)
    for (mesh, dimensions), pieces in groups.items():
        squares = nn.utils.get_total_norm(pieces).to(device).square()
        for dimension in dimensions:
            assert mesh is not None, "what is dealt out has a mesh"
            dist.all_reduce(squares, group=mesh.get_group(dimension))
        total = total + squares
    return total.sqrt()


def lying_alike(tensors: Iterable[Item]) -> list[list[Item]]:
    """Tensors in runs of those that lie over one mesh, in order: torch takes a step of several in one call only so."""
    return [list(run) for _, run in groupby(tensors, _mesh)]


def lies_over(tensor: Tensor, dimension: str) -> bool:
    """Whether a tensor lies in pieces along a dimension of its mesh that has this name."""
    names = tensor.device_mesh.mesh_dim_names or () if isinstance(tensor, DTensor) else ()
    return dimension in names and names.index(dimension) in _dealt(tensor)


def _mesh(tensor: Tensor) -> DeviceMesh | None:
    return tensor.device_mesh if isinstance(tensor, DTensor) else None


def _dealt(tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of its mesh over which a tensor lies in pieces; along others it is there several times."""
    placements = tensor.placements if isinstance(tensor, DTensor) else ()
    return tuple(number for number, placement in enumerate(placements) if not placement.is_replicate())
