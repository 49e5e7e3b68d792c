"""A tensor that may lie in pieces over processes: its piece here, the whole of it, and how a whole one is dealt out."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor


def own_piece(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process, sharing its memory; the tensor itself where it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor. Every process that holds a piece of it calls this, and gets the whole for a moment."""
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor


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
