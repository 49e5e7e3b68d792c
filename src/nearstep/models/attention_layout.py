"""How queries, keys and values lie while the loops of a CPU work on them, and how they get there and back.

Head by head, token by token, each token's numbers side by side and `wide` apart: the next whole number of vectors.
What lies between them, and behind the last token, is anything.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nearstep.models.cpu_loops import Real, compiled
from nearstep.models.cpu_tiles import LANES, ROWS, Floats

# One line each: where a segment begins, its length, its first query that is asked, where its prefix begins, its length.
Table: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"


class Inputs(NamedTuple):
    """Queries, keys and values, [tokens, heads, width] each; they may be one array, side by side."""

    query: Floats
    key: Floats
    value: Floats
    firsts: tuple[int, int, int]  # the head of its array with which each begins
    cosines: Floats  # [tokens, width], by which queries and keys are turned; of no tokens if they are not
    sines: Floats


class Part(NamedTuple):
    """What a call is for."""

    first_head: int  # of keys
    heads: int
    group: int  # heads of queries for each
    window: int  # keys that a query sees at most, its own included
    scaling: Real


class Sizes(NamedTuple):
    """Numbers of a token's head, without and with what fills its last vector up; tokens that there is room for."""

    width: int
    wide: int
    value_width: int
    value_wide: int
    room: int


@compiled()
def ceiling(count: int, size: int) -> int:
    """The next multiple."""
    return (count + size - 1) // size * size


@compiled()
def sizes_of(inputs: Inputs, table: Table) -> Sizes:
    """With room for the longest segment and its prefix, and for a tile that begins with their last token."""
    longest = 0
    for t in range(table.shape[0]):
        longest = max(longest, table[t, 1] + table[t, 4])
    width, value_width = inputs.query.shape[2], inputs.value.shape[2]
    return Sizes(width, ceiling(width, LANES), value_width, ceiling(value_width, LANES), longest + ROWS)


@compiled("contract")
def take(
    states: Floats, first: int, count: int, cosines: Floats, sines: Floats, factor: Real, into: Floats, row: int
) -> None:
    """The first `count` tokens of some heads, from head `first` on, to [heads, room, wide] from row `row` on: turned to
    their positions (Su et al. 2021) and times a factor.

    A head x = (x₁, x₂) becomes x · cos + (−x₂, x₁) · sin. Written out for both: calls and slices take longer than the
    few numbers of a head.
    """
    heads, width = into.shape[0], states.shape[2]
    half = width // 2
    for i in range(count):
        for h in range(heads):
            if len(cosines) == 0:
                for j in range(width):
                    into[h, row + i, j] = states[i, first + h, j] * factor
            else:
                for j in range(half):
                    turned = states[i, first + h, j] * cosines[i, j] - states[i, first + h, half + j] * sines[i, j]
                    into[h, row + i, j] = turned * factor
                for j in range(half):
                    turned = states[i, first + h, half + j] * cosines[i, half + j]
                    turned += states[i, first + h, j] * sines[i, half + j]
                    into[h, row + i, half + j] = turned * factor


@compiled("contract")
def give(
    rows: Floats, row: int, count: int, cosines: Floats, sines: Floats, factor: Real, states: Floats, first: int
) -> None:
    """The way back, for gradients: g · cos + (g₂ · sin₂, −g₁ · sin₁), times a factor."""
    heads, width = rows.shape[0], states.shape[2]
    half = width // 2
    for i in range(count):
        for h in range(heads):
            if len(cosines) == 0:
                for j in range(width):
                    states[i, first + h, j] = rows[h, row + i, j] * factor
            else:
                for j in range(half):
                    turned = rows[h, row + i, j] * cosines[i, j] + rows[h, row + i, half + j] * sines[i, half + j]
                    states[i, first + h, j] = turned * factor
                for j in range(half):
                    turned = rows[h, row + i, half + j] * cosines[i, half + j] - rows[h, row + i, j] * sines[i, j]
                    states[i, first + h, half + j] = turned * factor


@compiled()
def add(states: Floats, into: Floats, first: int) -> None:
    """Add tokens of some heads to those of other heads, from head `first` on."""
    for i in range(states.shape[0]):
        for h in range(states.shape[1]):
            for j in range(states.shape[2]):
                into[i, first + h, j] += states[i, h, j]
