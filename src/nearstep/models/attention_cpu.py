"""How segments attend on a CPU: in loops that numba compiles for it, where it is installed and they fit the layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearstep.models.attention.interface import LayerInput, Segment, Segments
from nearstep.models.cpu_threads import arrays, in_threads

if TYPE_CHECKING:
    from nearstep.models.attention_layout import Inputs

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


@dataclass(frozen=True)
class Angles:
    """Cosines and sines of each position, by which the halves of a head turn against each other (Su et al. 2021)."""

    cosines: Float[Tensor, "tokens head_width"]
    sines: Float[Tensor, "tokens head_width"]


@dataclass(frozen=True)
class Rows:
    """Queries, keys and values of packed rows, all contiguous: each in a tensor of its own, or in one, side by side."""

    query: Float[Tensor, "tokens _ width"]
    key: Float[Tensor, "tokens _ width"]
    value: Float[Tensor, "tokens _ value_width"]
    heads: int
    kv_heads: int
    angles: Angles | None = None  # by which queries and keys are turned before they meet

    @staticmethod
    def side_by_side(joined: Float[Tensor, "tokens all_heads width"], kv_heads: int, angles: Angles) -> "Rows":
        """The three in one."""
        return Rows(joined, joined, joined, joined.shape[1] - 2 * kv_heads, kv_heads, angles)

    def new(self, *, empty: bool) -> "Rows":
        """Memory of the same kind, with zeros if it shall not be empty."""
        make = torch.empty_like if empty else torch.zeros_like
        if self.query is self.key:
            return Rows.side_by_side(make(self.query), self.kv_heads, cast(Angles, self.angles))
        return Rows(make(self.query), make(self.key), make(self.value), self.heads, self.kv_heads, self.angles)

    def arrays(self) -> "Inputs":
        """As the loops take them."""
        from nearstep.models.attention_layout import Inputs

        angles = self.angles or Angles(self.query.new_empty(0, 0), self.query.new_empty(0, 0))
        firsts = (0, self.heads, self.heads + self.kv_heads) if self.query is self.key else (0, 0, 0)
        query, key, value, cosines, sines = arrays(self.query, self.key, self.value, angles.cosines, angles.sines)
        return Inputs(query, key, value, firsts, cosines, sines)


Found: TypeAlias = Float[Tensor, "tokens heads value_width"]


def attend_rows(
    rows: Rows, plan: SegmentsOnCPU, window: int, scaling: float
) -> tuple[Found, Float[Tensor, "heads tokens"]]:
    """What queries find, and the log-sum-exp of each. Nothing is differentiated."""
    from nearstep.models.attention_kernels import attend
    from nearstep.models.attention_layout import Part

    tokens, new = len(rows.query), rows.query.new_empty if plan.first_asked is None else rows.query.new_zeros
    found, log_sums = new(tokens, rows.heads, rows.value.shape[2]), rows.query.new_empty(rows.heads, tokens)
    inputs, (out, sums), group = rows.arrays(), arrays(found, log_sums), rows.heads // rows.kv_heads

    def run(table: Table, first_head: int, heads: int) -> None:
        attend(inputs, table, Part(first_head, heads, group, window, np.float32(scaling)), out, sums)

    in_threads(run, plan.shares(rows.kv_heads, torch.get_num_threads()))
    return found, log_sums


def differentiate_rows(
    rows: Rows, found: Found, log_sums: Float[Tensor, "heads tokens"], gradient: Found, plan: SegmentsOnCPU,
    window: int, scaling: float,
) -> Rows:  # fmt: skip
    """The gradients of queries, keys and values, from that of what queries found."""
    from nearstep.models.attention_kernels import differentiate
    from nearstep.models.attention_layout import Part

    of_rows = rows.new(empty=plan.first_asked is None)
    sums, g, shifts = arrays(log_sums, gradient, torch.linalg.vecdot(found, gradient))
    inputs, of_inputs, group = rows.arrays(), of_rows.arrays(), rows.heads // rows.kv_heads

    def run(table: Table, first_head: int, heads: int) -> None:
        part = Part(first_head, heads, group, window, np.float32(scaling))
        differentiate(inputs, table, part, sums, g, shifts, of_inputs)

    in_threads(run, plan.shares(rows.kv_heads, torch.get_num_threads()))
    return of_rows


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
        rows = Rows(query, key, value, query.shape[1], key.shape[1])
        out, log_sums = attend_rows(rows, plan, window, scaling)
        context.save_for_backward(query, key, value, out, log_sums)
        context.rest = plan, window, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, log_sums = context.saved_tensors
        rows = Rows(query, key, value, query.shape[1], key.shape[1])
        of_rows = differentiate_rows(rows, out, log_sums, gradient.contiguous(), *context.rest)
        return of_rows.query, of_rows.key, of_rows.value, None, None, None
