"""What keeps the weights of a role in the host's memory while the role does not compute."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Offload:
    """Weights that stay what they are, in the host's memory; on the device there is a copy while they compute.

    Nothing has to come back from the device, for nothing there has changed.
    """

    tensors: tuple[Tensor, ...] = ()
    device: torch.device = HOST

    @staticmethod
    def of(model: nn.Module, device: torch.device, *, beside: nn.Module | None = None) -> "Offload":
        """That of a model which computes on `device`; tensors that it shares with `beside` stay where they are."""
        kept = {id(tensor) for tensor in tensors_of(beside)} if beside is not None else set()
        own = tuple(tensor for tensor in tensors_of(model) if id(tensor) not in kept)
        for tensor in own:
            tensor.data = tensor.data.to(HOST)
            if device.type == "cuda":
                tensor.data = tensor.data.pin_memory()  # a copy from there need not wait for the host
        return Offload(own, device)

    @contextmanager
    def here(self) -> Iterator[None]:
        """While the role computes: its weights are on the device. One may lie within another."""
        held = [tensor.data for tensor in self.tensors]
        try:
            for tensor, data in zip(self.tensors, held, strict=True):
                tensor.data = data.to(self.device, non_blocking=True, copy=True)
            yield
        finally:
            for tensor, data in zip(self.tensors, held, strict=True):
                tensor.data = data


@contextmanager
def away(tensors: Iterable[Tensor]) -> Iterator[None]:
    """While a role that trains is idle: its tensors are in the host's memory, and come back afterwards."""
    moved = [(tensor, tensor.device) for tensor in tensors if tensor.device != HOST]
    try:
        for tensor, _ in moved:
            tensor.data = tensor.data.to(HOST)
        yield
    finally:
        for tensor, device in moved:
            tensor.data = tensor.data.to(device)


def tensors_of(model: nn.Module) -> list[Tensor]:
    """Weights and buffers of a model, each once."""
    return list({id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values())
