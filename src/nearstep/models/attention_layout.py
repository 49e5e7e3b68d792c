"""How queries, keys and values lie while the loops of a CPU work on them, and how they get there and back.

Keys and values of a segment and its prefix: for each head blocks of KEYS tokens, with a line for each of the head's
dimensions. Queries: row by row, head by head, CHUNK of them at a time.
"""

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from nearstep.models.cpu_loops import KEYS, LANES, LINE, QUERIES, Floats, Real, compiled, f4, fill

# One line each: where a segment begins, its length, its first query that is asked, where its prefix begins, its length.
Table: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"
CHUNK = 128  # queries of every head


class Sizes(NamedTuple):
    """What is the same for all segments."""

    width: int
    value_width: int
    window: int  # keys that a query sees at most, its own included
    heads: int  # of keys, that this call is for
    first_head: int  # of those
    group: int  # heads of queries for each
    blocks: int  # of the longest segment's keys


@compiled()
def ceil_divided(count: int, size: int) -> int:
    return (count + size - 1) // size


@compiled()
def blocks_of(table: Table) -> int:
    """Of the longest segment with its prefix."""
    longest = 0
    for t in range(table.shape[0]):
        longest = max(longest, table[t, 1] + table[t, 4])
    return ceil_divided(longest, KEYS)


@compiled()
def lay_out(
    states: Floats, prefix_start: int, prefix: int, start: int, length: int, sizes: Sizes, into: Floats
) -> None:
    """Keys or values of a prefix and of what follows it, as lines, and zeros up to the next whole vector."""
    width = states.shape[2]
    _transpose(states[prefix_start : prefix_start + prefix], 0, sizes, into)
    _transpose(states[start : start + length], prefix, sizes, into)
    end = prefix + length
    padding = ceil_divided(end, LANES) * LANES - end
    if padding > 0:
        for h in range(sizes.heads):
            for d in range(width):
                place = (h * sizes.blocks + end // KEYS) * width * LINE + d * LINE + end % KEYS
                fill(into[place : place + padding], f4(0))


@compiled()
def clear(lines: Floats, keys: int, width: int, sizes: Sizes) -> None:
    """Zeros where the gradients of a segment's keys will be, in whole vectors."""
    for h in range(sizes.heads):
        for b in range(ceil_divided(keys, KEYS)):
            count = ceil_divided(min(KEYS, keys - b * KEYS), LANES) * LANES
            for d in range(width):
                place = ((h * sizes.blocks + b) * width + d) * LINE
                fill(lines[place : place + count], f4(0))


@compiled()
def _transpose(states: Floats, first_key: int, sizes: Sizes, into: Floats) -> None:
    """Four tokens at a time where they are of one block: their numbers lie beside one another in the lines."""
    count, width = states.shape[0], states.shape[2]
    size = sizes.blocks * width * LINE
    j = 0
    while j < count:
        block, column = (first_key + j) // KEYS, (first_key + j) % KEYS
        four = j + 4 <= count and column + 4 <= KEYS
        for h in range(sizes.heads):
            place = h * size + block * width * LINE + column
            lines, head = into[place : place + width * LINE], sizes.first_head + h
            for d in range(width):
                if four:
                    a, b, c, e = (
                        states[j, head, d],
                        states[j + 1, head, d],
                        states[j + 2, head, d],
                        states[j + 3, head, d],
                    )
                    lines[d * LINE], lines[d * LINE + 1], lines[d * LINE + 2], lines[d * LINE + 3] = a, b, c, e
                else:
                    lines[d * LINE] = states[j, head, d]
        j += 4 if four else 1


@compiled()
def add_back(
    lines: Floats, prefix_start: int, prefix: int, start: int, length: int, sizes: Sizes, gradient: Floats
) -> None:
    """Add the gradients of a prefix and of what follows it to those of their tokens."""
    width = gradient.shape[2]
    size = sizes.blocks * width * LINE
    for j in range(prefix + length):
        token = prefix_start + j if j < prefix else start + j - prefix
        for h in range(sizes.heads):
            place = h * size + j // KEYS * width * LINE + j % KEYS
            column, states = lines[place : place + width * LINE], gradient[token, sizes.first_head + h]
            for d in range(0, width, 4):
                a, b, c, e = column[d * LINE], column[(d + 1) * LINE], column[(d + 2) * LINE], column[(d + 3) * LINE]
                states[d] += a
                states[d + 1] += b
                states[d + 2] += c
                states[d + 3] += e


@compiled("contract")
def gather(states: Floats, start: int, count: int, first: int, heads: int, factor: Real, into: Floats) -> None:
    """Rows of some tokens, head by head, times a factor, and zeros up to the next whole number of QUERIES."""
    width = states.shape[2]
    for i in range(count):
        for h in range(heads):
            row, place = states[start + i, first + h], (h * CHUNK + i) * width
            target = into[place : place + width]
            for d in range(width):
                target[d] = row[d] * factor
    for h in range(heads):
        fill(into[(h * CHUNK + count) * width : (h * CHUNK + ceil_divided(count, QUERIES) * QUERIES) * width], f4(0))


@compiled("contract")
def scatter(rows: Floats, start: int, count: int, first: int, heads: int, factor: Real, states: Floats) -> None:
    """The way back."""
    width = states.shape[2]
    for i in range(count):
        for h in range(heads):
            place, target = (h * CHUNK + i) * width, states[start + i, first + h]
            row = rows[place : place + width]
            for d in range(width):
                target[d] = row[d] * factor
