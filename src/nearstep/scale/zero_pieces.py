"""Tensors and frozen networks that lie over processes as DeepSpeed deals them out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Found = TypeVar("Found")


@dataclass(frozen=True)
class Share:
    """Where this process's part of a weight lies: in which flat tensor, from where, and from where in the weight."""

    flat: int
    start: int
    of_weight: int
    numel: int


@dataclass(frozen=True)
class Piece:
    """A tensor of which every process holds another part, flat."""

    part: Tensor
    start: int  # of the part in the whole
    shape: torch.Size

    def own(self) -> Tensor:
        """See InPieces.own."""
        return self.part

    def whole(self) -> Tensor:
        """See InPieces.whole."""
        found = torch.zeros(self.shape.numel(), dtype=self.part.dtype, device=self.part.device)
        found[self.start : self.start + len(self.part)] = self.part.detach()
        dist.all_reduce(found)
        return found.view(self.shape)


@dataclass
class FrozenPieces:
    """A network that does not learn, in pieces (ZeRO-3): its weights are gathered around a pass, all at once."""

    network: nn.Module
    depth: int = 0
    _gather: Any = field(default=None)

    def run(self, one_pass: Callable[[], Found]) -> Found:
        """Run a pass. All processes run as many, unless weights are gathered."""
        with self.gathered():
            return one_pass()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights whole. All processes come here."""
        self.depth += 1
        if self.depth == 1:
            self._gather = whole_parameters(list(self.network.parameters()))
            self._gather.__enter__()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                gather, self._gather = self._gather, None
                gather.__exit__(None, None, None)


def in_pieces(network: nn.Module, config: Mapping[str, object]) -> FrozenPieces:
    """Deal out the weights of a network that does not learn."""
    import deepspeed

    deepspeed.zero.Init(module=network, config_dict_or_path=dict(config))
    return FrozenPieces(network)


def whole_parameters(parameters: Sequence[nn.Parameter], *, changed: bool = False) -> Any:
    """While weights are whole; `changed`: rank 0's are dealt out afterwards. Nothing to do for those that are whole."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if changed else None)


def copy_part(whole: Tensor, flat: Tensor, share: Share) -> None:
    part = whole.flatten()[share.of_weight : share.of_weight + share.numel]
    with torch.no_grad():
        flat[share.start : share.start + share.numel].copy_(part)
