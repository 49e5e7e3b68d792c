"""A tensor that may lie in pieces over processes: its piece here, the whole of it, and how a whole one is dealt out."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor


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
    """A tensor in the pieces in which another of its shape lies. Each process has the whole one and keeps its piece."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(whole.to(own_piece(like).device), like.device_mesh, like.placements, src_data_rank=None)


def norm_of_pieces(gradients: Sequence[Tensor], mesh: DeviceMesh, device: torch.device) -> Tensor:
    """Euclidean norm of gradients, some in pieces over `mesh` and some whole and alike everywhere."""
    pieces = [own_piece(each) for each in gradients if isinstance(each, DTensor)]
    wholes = [each for each in gradients if not isinstance(each, DTensor)]
    squares = nn.utils.get_total_norm(pieces).to(device).square()
    dist.all_reduce(squares, group=mesh.get_group())
    return (squares + nn.utils.get_total_norm(wholes).to(squares).square()).sqrt()


def norm_over_processes(pieces: Sequence[Tensor], device: torch.device) -> Tensor:
    """Euclidean norm of gradients of which every process holds another part."""
    squares = nn.utils.get_total_norm(pieces).to(device).square()
    dist.all_reduce(squares)
    return squares.sqrt()
