"""How rows that lie back to back attend: the one operation of a decoder that depends on row borders.

Everything else in a decoder works token by token, so a packed [1, tokens] input needs nothing but positions that
restart and this attention. It is registered with transformers under one name; how to attend travels with each
forward pass as the keyword `attention_plan`, so that recomputing layers in the backward pass sees it too.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from nearstep.algorithm.precision import wide

PACKED = "nearstep_packed"


@dataclass(frozen=True)
class LayerInput:
    """Queries, keys and values of one layer for a packed input, and the options of the layer."""

    query: Float[Tensor, "1 heads tokens width"]
    key: Float[Tensor, "1 kv_heads tokens width"]
    value: Float[Tensor, "1 kv_heads tokens value_width"]
    scaling: float | None
    window: int | None  # a token sees this many tokens, itself included
    softcap: float | None


@runtime_checkable
class AttentionPlan(Protocol):
    """Which token of a packed input sees which keys."""

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """The attention output of one layer."""


@dataclass(frozen=True)
class Segment:
    """Tokens that lie together: each sees those before it, and all of the segment with the number `prefix`."""

    length: int
    prefix: int | None = None


@dataclass(frozen=True)
class Segments:
    """Rows side by side, nothing between them. A prompt that several rows share is a segment of its own, their prefix;
    any other row is one segment without a prefix."""

    segments: tuple[Segment, ...]

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """Segment by segment: no work is spent on what must not be seen, and nothing can leak.

        A CPU attends in float32 at least: in bfloat16 its kernels are slower, and less exact.
        """
        lengths = [segment.length for segment in self.segments]
        kind = torch.promote_types(layer.query.dtype, torch.float32) if layer.query.is_cpu else layer.query.dtype
        widened = (states.to(kind) for states in (layer.query, layer.key, layer.value))
        queries, keys, values = (states.split(lengths, dim=2) for states in widened)
        outputs = []
        for segment, query, key, value in zip(self.segments, queries, keys, values, strict=True):
            if segment.prefix is not None:
                key = torch.cat([keys[segment.prefix], key], dim=2)
                value = torch.cat([values[segment.prefix], value], dim=2)
            outputs.append(attend_causally(query, key, value, layer).transpose(1, 2))
        # Contiguous by token, as the layers around expect.
        return torch.cat(outputs, dim=1).to(layer.query.dtype).transpose(1, 2)


def attend_causally(query: Tensor, key: Tensor, value: Tensor, layer: LayerInput) -> Tensor:
    """Attention of a row's last tokens over the whole row, within the layer's window."""
    queries, length = query.shape[2], key.shape[2]
    if queries == length and layer.softcap is None and (layer.window is None or length <= layer.window):
        grouped = query.shape[1] != key.shape[1]
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=layer.scaling, enable_gqa=grouped)
    places = torch.arange(length, device=query.device)
    distance = places[length - queries :, None] - places
    visible = (distance >= 0) & (distance < (layer.window or length))
    return attend_where(query, key, value, visible, layer)


def attend_where(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, layer: LayerInput) -> Tensor:
    """Attention under a mask that broadcasts to [batch, heads, queries, keys], soft-capped if the layer is."""
    grouped = query.shape[1] != key.shape[1]
    if layer.softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=layer.scaling, enable_gqa=grouped
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scale = layer.scaling if layer.scaling is not None else query.shape[-1] ** -0.5
    weights = torch.tanh(query @ key.transpose(2, 3) * scale / layer.softcap) * layer.softcap
    weights = wide(weights.masked_fill(~visible, -torch.inf)).softmax(-1)
    return weights.to(value.dtype) @ value


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | int | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    attention_plan: AttentionPlan | None = None,
    **interface: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every attention layer while a pass of ours runs. Without a plan it is transformers'
    sdpa: a user's call in another thread at that time."""
    if attention_plan is None:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module,
            query,
            key,
            value,
            attention_mask if isinstance(attention_mask, Tensor) else None,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            **interface,
        )
    if isinstance(attention_mask, Tensor):
        raise ValueError("a layer makes a mask of its own")
    if attention_mask != sliding_window:
        raise ValueError(f"a layer asks for a window of {sliding_window}, its mask for one of {attention_mask}")
    layer = LayerInput(query, key, value, scaling, sliding_window, softcap)
    return attention_plan.attend(layer).transpose(1, 2).contiguous(), None


def _mask(
    *positional: Any, attention_mask: Tensor | None = None, local_size: int | None = None, **interface: Any
) -> Tensor | int | None:
    """What transformers gives `_attention` as a mask: for a packed input the width of the layer's window, if it has
    one; transformers' own otherwise."""
    if attention_mask is None:
        return local_size
    return sdpa_mask(  # type: ignore[no-any-return]
        *positional, attention_mask=attention_mask, local_size=local_size, **interface
    )


AttentionInterface.register(PACKED, _attention)
AttentionMaskInterface.register(PACKED, _mask)
