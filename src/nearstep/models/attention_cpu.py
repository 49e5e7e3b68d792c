"""How segments attend on a CPU: in loops that numba compiles for it, where it is installed and they fit the layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearstep.models.attention import LayerInput, Segment, Segments
from nearstep.models.cpu_threads import arrays, in_threads

Table: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
EVERYTHING = 2**40  # a window that no row fills


def loops_fit(dtype: torch.dtype, *, width: int, value_width: int, softcap: float | None) -> bool:
    """Whether the loops can compute a layer: in float32, as 16-bit types are on a CPU; heads are a few fours wide."""
    return dtype != torch.float64 and softcap is None and width % 4 == 0 and value_width % 4 == 0


@dataclass(frozen=True)
class SegmentsOnCPU:
    """`Segments` for a CPU: all of them in one call, nothing of them copied for their prefix."""

    segments: tuple[Segment, ...]
    first_asked: tuple[int, ...] | None = None  # of every segment: the output of queries before it is zero

    def asking_only(self, places: Int[Tensor, " asked"]) -> "SegmentsOnCPU":
        """The same, without what comes before the first of these tokens in every segment."""
        ends = np.array([segment.length for segment in self.segments]).cumsum()
        firsts = ends.copy()
        np.minimum.at(firsts, ends.searchsorted(places.numpy(), side="right"), places.numpy())
        starts = np.concatenate([[0], ends[:-1]])
        return SegmentsOnCPU(self.segments, tuple((firsts - starts).tolist()))

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """The attention output of one layer."""
        query, value = layer.query, layer.value
        if not loops_fit(query.dtype, width=query.shape[3], value_width=value.shape[3], softcap=layer.softcap):
            return Segments(self.segments).attend(layer)
        states = (states.float().squeeze(0).transpose(0, 1).contiguous() for states in (query, layer.key, value))
        scaling = query.shape[3] ** -0.5 if layer.scaling is None else layer.scaling
        window = layer.window or EVERYTHING
        output: Tensor = _Attention.apply(*states, self, window, scaling)  # type: ignore[no-untyped-call]
        return output.to(query.dtype).transpose(0, 1)[None]

    @cached_property
    def table(self) -> Table:
        """One line for each segment: its start, its length, its first query, and the start and length of its prefix."""
        starts = [0, *accumulate(segment.length for segment in self.segments)]
        prefixes = [
            (0, 0) if segment.prefix is None else (starts[segment.prefix], self.segments[segment.prefix].length)
            for segment in self.segments
        ]
        asked = self.first_asked or [0] * len(self.segments)
        lines = zip(starts, self.segments, asked, prefixes, strict=False)
        return np.array([(start, one.length, first, *prefix) for start, one, first, prefix in lines], dtype=np.int64)

    def shares(self, key_heads: int, threads: int) -> list[tuple[Table, int, int]]:
        """The work of each thread: segments as the loops want them, and from which head how many heads of keys.

        What shares a prefix stays together, so no two threads add to one gradient.
        """
        if threads == 1:
            return [(self.table, 0, key_heads)]
        table, families = self.table, _families(self.segments)
        work = np.array([table[family, 1] @ (table[family, 1] + 2 * table[family, 4]) for family in families])
        owner = (work.cumsum() - 1) * min(threads, len(families)) // work.sum()
        parts = [table[np.concatenate([families[f] for f in np.flatnonzero(owner == o)])] for o in np.unique(owner)]
        cuts = min(key_heads, threads // len(parts))
        ends = [cut * key_heads // cuts for cut in range(cuts + 1)]
        return [(part, start, end - start) for part in parts for start, end in pairwise(ends)]


def _families(segments: Sequence[Segment]) -> list[list[int]]:
    """The numbers of segments that stand alone, or of a prefix and all that see it."""
    families: dict[int, list[int]] = {}
    for number, segment in enumerate(segments):
        families.setdefault(number if segment.prefix is None else segment.prefix, []).append(number)
    return list(families.values())


Query: TypeAlias = Float[Tensor, "tokens heads width"]
Key: TypeAlias = Float[Tensor, "tokens kv_heads width"]
Value: TypeAlias = Float[Tensor, "tokens kv_heads value_width"]
Mixed: TypeAlias = Float[Tensor, "tokens heads value_width"]


def attend_rows(
    query: Query, key: Key, value: Value, plan: SegmentsOnCPU, window: int, scaling: float
) -> tuple[Mixed, Float[Tensor, "heads tokens"]]:
    """What queries find, and the log-sum-exp of each; all three contiguous. Nothing is differentiated."""
    from nearstep.models.attention_kernels import attend

    new = query.new_empty if plan.first_asked is None else query.new_zeros
    out = new(*query.shape[:2], value.shape[2])
    log_sums = query.new_empty(query.shape[1], query.shape[0])
    q, k, v, o, sums = arrays(query, key, value, out, log_sums)

    def run(table: Table, first_head: int, heads: int) -> None:
        attend(q, k, v, table, window, np.float32(scaling), first_head, heads, o, sums)

    in_threads(run, plan.shares(key.shape[1], torch.get_num_threads()))
    return out, log_sums


def differentiate_rows(
    query: Query,
    key: Key,
    value: Value,
    out: Mixed,
    log_sums: Float[Tensor, "heads tokens"],
    gradient: Mixed,
    plan: SegmentsOnCPU,
    window: int,
    scaling: float,
) -> tuple[Query, Key, Value]:
    """The gradients of queries, keys and values, from that of the output."""
    from nearstep.models.attention_kernels import differentiate

    new = torch.empty_like if plan.first_asked is None else torch.zeros_like
    gradients = new(query), torch.zeros_like(key), torch.zeros_like(value)
    q, k, v, sums, g = arrays(query, key, value, log_sums, gradient)
    shifts, of_q, of_k, of_v = arrays(torch.linalg.vecdot(out, gradient), *gradients)

    def run(table: Table, first_head: int, heads: int) -> None:
        factor = np.float32(scaling)
        differentiate(q, k, v, table, window, factor, first_head, heads, sums, g, shifts, of_q, of_k, of_v)

    in_threads(run, plan.shares(key.shape[1], torch.get_num_threads()))
    return gradients


class _Attention(torch.autograd.Function):
    """Attention of [tokens, heads, width], and its gradients."""

    @staticmethod
    def forward(
        context: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        plan: SegmentsOnCPU,
        window: int,
        scaling: float,
    ) -> Tensor:
        out, log_sums = attend_rows(query, key, value, plan, window, scaling)
        context.save_for_backward(query, key, value, out, log_sums)
        context.rest = plan, window, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sums = context.saved_tensors
        of_all = differentiate_rows(query, key, value, out, log_sums, gradient.contiguous(), *context.rest)
        return *of_all, None, None, None
