"""How segments attend on a GPU: all of them in one kernel, the fastest that is there and fits the layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.torch_version import TorchVersion

from nearstep.common.plugins import is_installed
from nearstep.models.attention.interface import LayerInput, Segment, Segments

MaskRule: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Kernel(Enum):
    """Ways to attend, in the order in which they are preferred."""

    VARLEN = "torch's variable-length flash attention"
    FLASH = "flash-attn's variable-length attention"
    FLEX = "torch's flex attention"
    ROWS = "row by row"


@cache
def kernels_there() -> frozenset[Kernel]:
    """What this machine offers."""
    there = {Kernel.ROWS}
    if not torch.cuda.is_available():
        return frozenset(there)
    flash_chip = torch.cuda.get_device_capability() >= (8, 0)
    if flash_chip and TorchVersion(torch.__version__) >= "2.12" and torch.backends.cuda.is_flash_attention_available():
        there.add(Kernel.VARLEN)
    if flash_chip and is_installed("flash_attn"):
        there.add(Kernel.FLASH)
    if is_installed("triton"):
        there.add(Kernel.FLEX)
    return frozenset(there)


def kernel_for(
    there: frozenset[Kernel], dtype: torch.dtype, *, width: int, value_width: int, softcap: float | None
) -> Kernel:
    """The first that can: flash kernels know 16-bit types and heads of up to 256, torch's no soft cap."""
    flash_fits = dtype in (torch.bfloat16, torch.float16) and width == value_width and width <= 256
    fits = {Kernel.VARLEN: flash_fits and softcap is None, Kernel.FLASH: flash_fits}
    return next(kernel for kernel in Kernel if kernel in there and fits.get(kernel, True))


@dataclass(frozen=True)
class Borders:
    """Where segments end, as variable-length kernels want it: segment i's queries are those from `query_ends[i]` on.

    `keys` gathers the keys of every segment, its prefix before its own; None where they lie as the queries do.
    """

    query_ends: Int[Tensor, " segments_and_one"]
    key_ends: Int[Tensor, " segments_and_one"]
    keys: Int[Tensor, " keys"] | None
    longest_query: int
    longest_key: int


def borders_of(segments: Sequence[Segment], device: torch.device) -> Borders:
    """Work out the borders, once for all layers of a forward pass."""
    ends = [0, *accumulate(segment.length for segment in segments)]
    spans = [range(start, end) for start, end in pairwise(ends)]
    prefixes = [range(0) if segment.prefix is None else spans[segment.prefix] for segment in segments]
    key_lengths = [len(prefix) + len(span) for prefix, span in zip(prefixes, spans, strict=True)]
    keys = None
    if any(prefixes):
        pairs = (part for pair in zip(prefixes, spans, strict=True) for part in pair)
        keys = torch.cat([torch.arange(part.start, part.stop) for part in pairs]).to(device)
    return Borders(
        query_ends=torch.tensor(ends, dtype=torch.int32, device=device),
        key_ends=torch.tensor([0, *accumulate(key_lengths)], dtype=torch.int32, device=device),
        keys=keys,
        longest_query=max(map(len, spans), default=0),
        longest_key=max(key_lengths, default=0),
    )


@dataclass(frozen=True)
class SegmentsOnGPU:
    """`Segments` for a GPU. Keys of a shared prefix are gathered for every segment that sees them, or, where flex
    attention is used, masked; computed they are once."""

    segments: tuple[Segment, ...]
    device: torch.device
    borders: Borders
    masks: dict[int | None, BlockMask] = field(default_factory=dict, repr=False)  # by window, made when first needed

    @staticmethod
    def of(segments: tuple[Segment, ...], device: torch.device) -> "SegmentsOnGPU":
        """The plan for one forward pass."""
        return SegmentsOnGPU(segments, device, borders_of(segments, device))

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """The attention output of one layer."""
        kernel = kernel_for(
            kernels_there(),
            layer.query.dtype,
            width=layer.query.shape[3],
            value_width=layer.value.shape[3],
            softcap=layer.softcap,
        )
        match kernel:
            case Kernel.VARLEN:
                return attend_varlen(layer, self.borders, _torch_varlen)
            case Kernel.FLASH:
                return attend_varlen(layer, self.borders, _flash_attn_varlen)
            case Kernel.FLEX:
                if layer.window not in self.masks:
                    self.masks[layer.window] = block_mask(self.segments, layer.window, self.device)
                return attend_flex(layer, self.masks[layer.window], _compiled_flex())
        return Segments(self.segments).attend(layer)


VarlenKernel: TypeAlias = Callable[[Tensor, Tensor, Tensor, Borders, LayerInput], Tensor]


def attend_varlen(layer: LayerInput, borders: Borders, kernel: VarlenKernel) -> Tensor:
    """Every segment's queries over its keys; causality counts from the ends, so a prefix is seen whole."""
    query, key, value = (states.squeeze(0).transpose(0, 1) for states in (layer.query, layer.key, layer.value))
    if borders.keys is not None:
        key, value = key[borders.keys], value[borders.keys]
    return kernel(query, key, value, borders, layer).transpose(0, 1)[None]


def _torch_varlen(query: Tensor, key: Tensor, value: Tensor, borders: Borders, layer: LayerInput) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query,
        key,
        value,
        borders.query_ends,
        borders.key_ends,
        borders.longest_query,
        borders.longest_key,
        scale=layer.scaling,
        window_size=_flash_window(layer),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor), "a pair only where more is asked for"
    return output


def _flash_attn_varlen(query: Tensor, key: Tensor, value: Tensor, borders: Borders, layer: LayerInput) -> Tensor:
    from flash_attn import flash_attn_varlen_func

    output: Tensor = flash_attn_varlen_func(
        query,
        key,
        value,
        borders.query_ends,
        borders.key_ends,
        borders.longest_query,
        borders.longest_key,
        softmax_scale=layer.scaling,
        causal=True,
        window_size=_flash_window(layer),
        softcap=layer.softcap or 0.0,
    )
    return output


def _flash_window(layer: LayerInput) -> tuple[int, int]:
    """Tokens seen to the left and to the right of a token, itself not counted."""
    return (-1 if layer.window is None else layer.window - 1, 0)


def block_mask(segments: Sequence[Segment], window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys flex attention may skip, and what is masked in the others."""
    owner = torch.repeat_interleave(torch.tensor([segment.length for segment in segments])).to(device)
    return create_block_mask(mask_rule(segments, window, device), None, None, len(owner), len(owner), device=device)


def mask_rule(segments: Sequence[Segment], window: int | None, device: torch.device) -> MaskRule:
    """Whether a query sees a key, by their numbers in the packed input."""
    lengths = torch.tensor([segment.length for segment in segments])
    before = torch.tensor([0 if s.prefix is None else segments[s.prefix].length for s in segments])
    prefix_of = torch.tensor([-1 if segment.prefix is None else segment.prefix for segment in segments])
    owner = torch.repeat_interleave(lengths)
    place = torch.arange(len(owner)) - (lengths.cumsum(0) - lengths - before)[owner]
    owner, place, prefix = owner.to(device), place.to(device), prefix_of[owner].to(device)
    reach = window or len(owner)
    return lambda batch, head, query, key: (
        (((owner[key] == owner[query]) & (key <= query)) | (owner[key] == prefix[query]))
        & (place[query] - place[key] < reach)
    )


FlexKernel: TypeAlias = Callable[..., Tensor]


@cache
def _compiled_flex() -> FlexKernel:
    """Only compiled it is one kernel; made at its first use."""
    compiled: FlexKernel = torch.compile(flex_attention)
    return compiled


def attend_flex(layer: LayerInput, mask: BlockMask, kernel: FlexKernel) -> Tensor:
    """All segments at once under a mask of blocks."""
    cap, heads, repeats = layer.softcap, layer.query.shape[1], layer.query.shape[1] // layer.key.shape[1]
    key, value, grouped = layer.key, layer.value, repeats > 1
    if grouped and heads.bit_count() != 1:  # the kernel groups powers of two only
        key, value, grouped = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    return kernel(
        layer.query,
        key,
        value,
        scale=layer.scaling,
        enable_gqa=grouped,
        block_mask=mask,
        score_mod=None if cap is None else lambda score, batch, head, query, key: cap * torch.tanh(score / cap),
    )
