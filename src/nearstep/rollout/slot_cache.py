"""Where keys and values of the rows that are being generated lie: live rows in the first slots, without gaps."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.models.attention.choice import plan_of
from nearstep.models.attention.interface import LayerInput, Segment, attend_where


@dataclass
class SlotCache:
    """Keys and values, [slots, kv_heads, width, head width] each, by the order in which a forward pass attends: some
    layers attend twice, and some models go through their layers again. Made when they are first written."""

    slots: int
    width: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def states(self, number: int, layer: LayerInput) -> tuple[Tensor, Tensor]:
        """The two tensors of the attention with this number in the order."""
        if number == len(self.keys):
            for store, like in ((self.keys, layer.key), (self.values, layer.value)):
                store.append(like.new_zeros(self.slots, like.shape[1], self.width, like.shape[3]))
        return self.keys[number], self.values[number]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` places of one slot to another."""
        for stored in (*self.keys, *self.values):
            stored[target, :, :length] = stored[source, :, :length]


@dataclass(frozen=True)
class Prefill:
    """New prompts, packed: each attends to itself and leaves its keys and values in the slots of all its rows."""

    cache: SlotCache
    lengths: tuple[int, ...]
    slots: tuple[tuple[int, ...], ...]
    numbers: Iterator[int] = field(default_factory=count)

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """Store, then attend prompt by prompt."""
        keys, values = self.cache.states(next(self.numbers), layer)
        split_by_prompt = (states[0].split(self.lengths, dim=1) for states in (layer.key, layer.value))
        for slots, key, value in zip(self.slots, *split_by_prompt, strict=True):
            for slot in slots:
                keys[slot, :, : key.shape[1]] = key
                values[slot, :, : value.shape[1]] = value
        return plan_of(tuple(map(Segment, self.lengths)), layer.query.device).attend(layer)


@dataclass(frozen=True)
class DecodeStep:
    """One new token for each of the first slots, written at place `lengths` of its row; `width` places are looked at.

    What lies beyond a row's length is masked. So a slot without a row may take part with length 0, and what it writes
    stays unseen: a place is written by its own row, in prefill or in a step, before that row sees it.
    """

    cache: SlotCache
    lengths: Int[Tensor, " rows"]
    width: int
    numbers: Iterator[int] = field(default_factory=count)

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """Store the new key and value behind the row's others, then attend to all of them."""
        keys, values = self.cache.states(next(self.numbers), layer)
        keys[self._slots, :, self.lengths] = layer.key[0].transpose(0, 1)
        values[self._slots, :, self.lengths] = layer.value[0].transpose(0, 1)
        visible = self._filled if layer.window is None else self._filled & (self._age < layer.window)
        rows = len(self.lengths)
        output = attend_where(
            layer.query[0].transpose(0, 1)[:, :, None],
            keys[:rows, :, : self.width],
            values[:rows, :, : self.width],
            visible[:, None, None],
            layer,
        )
        return output[:, :, 0].transpose(0, 1)[None]

    @cached_property
    def _slots(self) -> Int[Tensor, " rows"]:
        return torch.arange(len(self.lengths), device=self.lengths.device)

    @cached_property
    def _age(self) -> Int[Tensor, "rows places"]:
        """How far each place lies behind the new token; negative where nothing stands yet."""
        return self.lengths[:, None] - torch.arange(self.width, device=self.lengths.device)

    @cached_property
    def _filled(self) -> Bool[Tensor, "rows places"]:
        return self._age >= 0
