"""Products of matrices on a CPU, out of tiles whose sums stay in registers (cpu_tiles.py): float32, compiled by numba.

What a product reads again and again lies in the caches: a panel of LANES columns in the first, some lines of the other
matrix in the second. Widths are whole vectors, lines any number.
"""

from nearstep.models.cpu_loops import compiled, f4, fill, scratch
from nearstep.models.cpu_tiles import LANES, ROWS, Floats, Lines, multiply, transpose

TOKENS, DEPTH = 128, 512  # lines, and numbers of each, that are read for one panel after the other
TERMS, COLUMNS = 128, 512  # of a sum over tokens: lines, and numbers of each, that are read again and again


@compiled()
def times(
    states: Floats, weight: Floats, across: bool, start: Floats, start_line: int, start_step: int, into: Floats,
    first: int, last: int,
) -> None:  # fmt: skip
    """Columns `first` to `last` of into = start + states · weightᵀ, or · weight if it lies `across`.

    The number of `start` for [t, n] is at t · start_line + n · start_step, and so the next LANES of them.
    """
    tokens, width = states.shape
    wide, whole = into.shape[1], tokens // ROWS * ROWS
    rest = tokens - whole
    flat, weights, found = states.reshape(-1), weight.reshape(-1), into.reshape(-1)
    # The last lines, which are no whole tile, lie in one of their own.
    lines, sums, begin = scratch(ROWS * width), scratch(ROWS * wide), start
    lines[: rest * width] = flat[whole * width :]
    if start_line > 0:
        begin = scratch(ROWS * wide)
        begin[: rest * wide] = start[whole * wide :]
    panel = scratch(min(width, DEPTH) * LANES)
    for k in range(0, width, DEPTH):
        depth = min(DEPTH, width - k)
        for t in range(0, max(whole, 1), TOKENS):
            for n in range(first, last, LANES):
                right = Lines(weights, k * wide + n, wide)
                if not across:
                    _turn(weights, n * width + k, width, depth, panel)
                    right = Lines(panel, 0, LANES)
                place = n * start_step
                _tiles(
                    flat, t, min(t + TOKENS, whole), k, width, right, depth, start, start_line, place, found, n, wide
                )
                if rest > 0 and t + TOKENS >= whole:
                    _tiles(lines, 0, ROWS, k, width, right, depth, begin, start_line, place, sums, n, wide)
    for r in range(rest):
        into[whole + r, first:last] = sums[r * wide + first : r * wide + last]


@compiled()
def _tiles(
    states: Floats, first: int, last: int, k: int, width: int, right: Lines, depth: int,
    start: Floats, start_line: int, place: int, into: Floats, n: int, wide: int,
) -> None:  # fmt: skip
    """Lines `first` to `last` and LANES columns from n on; of each sum `depth` terms from k on."""
    for i in range(first, last, ROWS):
        there = Lines(into, i * wide + n, wide)
        begin = there if k > 0 else Lines(start, i * start_line + place, start_line)
        multiply(there, begin, Lines(states, i * width + k, width), 1, right, depth)


@compiled()
def _turn(numbers: Floats, place: int, apart: int, depth: int, panel: Floats) -> None:
    """LANES lines of `depth` numbers, from `place` on, as columns."""
    for k in range(0, depth, LANES):
        transpose(Lines(panel, k * LANES, LANES), Lines(numbers, place + k, apart))


@compiled()
def add_outer(left: Floats, right: Floats, into: Floats, fresh: bool, first: int, last: int) -> None:
    """Lines `first` to `last` of into += leftᵀ · right; if it is `fresh`, of into = leftᵀ · right."""
    tokens, wide, width = left.shape[0], left.shape[1], right.shape[1]
    zeros = scratch(LANES)
    fill(zeros, f4(0))
    flat, other, found = left.reshape(-1), right.reshape(-1), into.reshape(-1)
    for k in range(0, width, COLUMNS):
        for t in range(0, tokens, TERMS):
            depth = min(TERMS, tokens - t)
            for n in range(first, last, ROWS):
                of_left = Lines(flat, t * wide + n, 1)
                for j in range(k, min(k + COLUMNS, width), LANES):
                    there = Lines(found, n * width + j, width)
                    start = Lines(zeros, 0, 0) if fresh and t == 0 else there
                    multiply(there, start, of_left, wide, Lines(other, t * width + j, width), depth)
