"""Memory that trainer and generation process share, in which the weights of a version lie while they are copied."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from nearstep.common.errors import ModelError

ALIGNED_BYTES = 64


@dataclass(frozen=True)
class WeightPlace:
    """Where a weight lies."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    first_byte: int

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class SharedWeights:
    """Named weights in memory without a name: nothing of it outlives both processes, however they end."""

    places: tuple[WeightPlace, ...]
    descriptor: int
    memory: mmap.mmap

    @staticmethod
    def for_model(model: nn.Module) -> "SharedWeights":
        """Room for the weights of a model."""
        layout = [[name, list(weight.shape), str(weight.dtype)] for name, weight in model.named_parameters()]
        places = _places(layout)
        descriptor = _anonymous_file()
        os.ftruncate(descriptor, max(_end(places), 1))
        return SharedWeights(places, descriptor, mmap.mmap(descriptor, 0))

    @staticmethod
    def of(descriptor: int, layout: Sequence[Sequence[Any]]) -> "SharedWeights":
        """The same memory in the other process."""
        return SharedWeights(_places(layout), descriptor, mmap.mmap(descriptor, 0))

    @property
    def layout(self) -> list[list[Any]]:
        """What the other process must know of it, as plain values."""
        return [[place.name, list(place.shape), str(place.dtype)] for place in self.places]

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Put a model's weights there."""
        weights = dict(model.named_parameters())
        for name, stored in self._tensors():
            stored.copy_(weights[name])

    def holds(self, model: nn.Module) -> bool:
        """Whether the weights that lie there are the model's."""
        weights = dict(model.named_parameters())
        return all(torch.equal(stored, weights[name].detach().cpu()) for name, stored in self._tensors())

    @torch.no_grad()
    def read_into(self, model: nn.Module) -> None:
        """Copy them into a model. Raises ModelError where it lacks one."""
        weights = dict(model.named_parameters())
        for name, stored in self._tensors():
            if name not in weights or weights[name].shape != stored.shape:
                found = list(weights[name].shape) if name in weights else "missing"
                raise ModelError(
                    f"the policy that the generation process has loaded is not the trainer's: {name} is {found} there, "
                    f"and has shape {list(stored.shape)} here. With max_staleness = 0 none has to be loaded"
                )
            weights[name].copy_(stored)

    def close(self) -> None:
        """Let go of the memory; it is given back once no tensor of it is in use."""
        with suppress(BufferError):  # an error on its way still holds one
            self.memory.close()
        os.close(self.descriptor)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for place in self.places:
            if place.size_bytes:
                flat = torch.frombuffer(
                    self.memory, dtype=place.dtype, count=prod(place.shape), offset=place.first_byte
                )
                yield place.name, flat.view(place.shape)


def _places(layout: Sequence[Sequence[Any]]) -> tuple[WeightPlace, ...]:
    places: list[WeightPlace] = []
    for name, shape, dtype in layout:
        first = _end(places) + -_end(places) % ALIGNED_BYTES
        places.append(WeightPlace(name, tuple(shape), getattr(torch, dtype.removeprefix("torch.")), first))
    return tuple(places)


def _end(places: Sequence[WeightPlace]) -> int:
    return places[-1].first_byte + places[-1].size_bytes if places else 0


def _anonymous_file() -> int:
    """Memory where the system has such files, else a file on the disk that has no name any more."""
    if "memfd_create" in dir(os):
        return os.memfd_create("nearstep-weights")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
