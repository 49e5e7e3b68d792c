"""Products of states and weights, nothing differentiated: float32 on a CPU in loops where they fit, else by torch.

The library that torch takes on a CPU is made for other processors than many a one it runs on; the loops keep the units
that multiply busy (docs/performance.md).
"""

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.models.cpu_threads import arrays, even_shares, in_threads, loops_there

States: TypeAlias = Float[Tensor, "tokens width"]
Wide: TypeAlias = Float[Tensor, "tokens wide"]
Weight: TypeAlias = Float[Tensor, "wide width"]
LANES = 16  # numbers of a vector, as in cpu_tiles.py
FEWEST = 32  # tokens: of fewer, laying out a weight would take longer than the product


def times(states: States, weight: Weight, start: Float[Tensor, "#tokens wide"] | None = None) -> Wide:
    """start + states · weightᵀ, where `start` may be one line for all tokens."""
    return times_into(states.new_empty(len(states), len(weight)), states, weight, start)


def times_into(into: Wide, states: States, weight: Weight, start: Float[Tensor, "#tokens wide"] | None = None) -> Wide:
    """The same in memory that is there."""
    if _loops_fit(len(states), into, states, weight):
        _in_loops(into, states, weight, start, across=False)
        return into
    return torch.mm(states, weight.T, out=into) if start is None else torch.addmm(start, states, weight.T, out=into)


def times_across(states: Wide, weight: Weight, start: Float[Tensor, "#tokens width"] | None = None) -> States:
    """start + states · weight, as the gradient of what `times` reads."""
    into = states.new_empty(len(states), weight.shape[1])
    if _loops_fit(len(states), into, states, weight):
        _in_loops(into, states, weight, start, across=True)
        return into
    return torch.mm(states, weight, out=into) if start is None else torch.addmm(start, states, weight, out=into)


def outer(left: Wide, right: States) -> Weight:
    """leftᵀ · right, as the gradient of the weight that `times` reads."""
    into = left.new_empty(left.shape[1], right.shape[1])
    if not _loops_fit(len(left), into, left, right):
        return torch.mm(left.T, right, out=into)
    _outer_in_loops(into, left, right, fresh=True)
    return into


def add_outer(into: Weight, left: Wide, right: States) -> None:
    """into += leftᵀ · right."""
    if _loops_fit(len(left), into, left, right):
        _outer_in_loops(into, left, right, fresh=False)
    else:
        into.addmm_(left.T, right)


def _loops_fit(tokens: int, *matrices: Tensor) -> bool:
    """Whether the loops can multiply: all widths are whole vectors, and there are tokens enough."""
    plain = all(one.dtype == torch.float32 and one.is_cpu and one.is_contiguous() for one in matrices)
    return plain and tokens >= FEWEST and all(one.shape[1] % LANES == 0 for one in matrices) and loops_there()


def _in_loops(into: Tensor, states: Tensor, weight: Tensor, start: Tensor | None, *, across: bool) -> None:
    from nearstep.models.products_kernels import times

    begin = into.new_zeros(LANES) if start is None else start.contiguous().view(-1)
    line = 0 if start is None or len(start) == 1 else into.shape[1]
    step = 0 if start is None else 1
    x, w, s, y = arrays(states, weight, begin, into)

    def run(first: int, last: int) -> None:
        times(x, w, across, s, line, step, y, first * LANES, last * LANES)

    in_threads(run, even_shares(into.shape[1] // LANES, LANES * len(into)))


def _outer_in_loops(into: Tensor, left: Tensor, right: Tensor, *, fresh: bool) -> None:
    from nearstep.models.products_kernels import add_outer

    a, b, c = arrays(left, right, into)

    def run(first: int, last: int) -> None:
        add_outer(a, b, c, fresh, first * LANES, last * LANES)

    in_threads(run, even_shares(len(into) // LANES, LANES * into.shape[1]))
