"""The inner loops of what runs on a CPU, float32, compiled by numba: products of small matrices, exponentials, sums.

A block holds lines of KEYS numbers, LINE apart. All loops run along a line, so the compiler can use vectors of any
width; loops of sums may be reordered for that. Infinities and NaNs keep their meaning.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numba import njit

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
Real: TypeAlias = "float | np.floating[Any]"
Loop = TypeVar("Loop", bound=Callable[..., Any])

KEYS = 256
LINE = KEYS + 16  # no power of two: its lines would share places in the cache
QUERIES = 8  # lines that are worked on together
LANES = 16  # of the widest vectors; loops run over multiples of it
NEVER = np.float32(-1e30)  # the score of what is not seen: finite, so that differences are
f4, i4 = np.float32, np.int32
LOG2_E, LN2_HIGH, LN2_LOW = f4(1.44269504), f4(0.693359375), f4(-2.12194440e-4)
SMALLEST = f4(-87.0)  # its exponential is just above the smallest normal number


def compiled(*relaxed: str) -> Callable[[Loop], Loop]:
    """Compile at the first call, with these liberties in the arithmetic; keep it on the disk if there is a folder."""

    def compile_it(function: Loop) -> Loop:
        plain = inspect.unwrap(function)  # of what checks shapes in tests
        options = {"nogil": True, "error_model": "numpy", "fastmath": set(relaxed)}
        try:
            return njit(cache=True, **options)(plain)  # type: ignore[no-any-return]
        except RuntimeError:  # numba found no folder
            return njit(**options)(plain)  # type: ignore[no-any-return]

    return compile_it


sums = compiled("reassoc", "contract", "nsz")


@compiled()
def scratch(size: int) -> Floats:
    """Memory that begins where a vector may."""
    raw = np.empty(size + LANES, f4)
    skip = (-raw.ctypes.data // 4) % LANES
    return raw[skip : skip + size]


@sums
def _add_four(into: Floats, left: Floats, p: int, across: int, down: int, b: Floats, count: int, fresh: bool) -> None:
    """Four lines of `into` get four lines of `b`, each times one of 4 × 4 numbers of `left` from place p on."""
    x0, x1, x2, x3 = left[p], left[p + across], left[p + 2 * across], left[p + 3 * across]
    p += down
    y0, y1, y2, y3 = left[p], left[p + across], left[p + 2 * across], left[p + 3 * across]
    p += down
    z0, z1, z2, z3 = left[p], left[p + across], left[p + 2 * across], left[p + 3 * across]
    p += down
    w0, w1, w2, w3 = left[p], left[p + across], left[p + 2 * across], left[p + 3 * across]
    if fresh:
        for j in range(count):
            b0, b1, b2, b3 = b[j], b[LINE + j], b[2 * LINE + j], b[3 * LINE + j]
            into[j] = x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
            into[LINE + j] = y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
            into[2 * LINE + j] = z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3
            into[3 * LINE + j] = w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3
    else:
        for j in range(count):
            b0, b1, b2, b3 = b[j], b[LINE + j], b[2 * LINE + j], b[3 * LINE + j]
            into[j] += x0 * b0 + x1 * b1 + x2 * b2 + x3 * b3
            into[LINE + j] += y0 * b0 + y1 * b1 + y2 * b2 + y3 * b3
            into[2 * LINE + j] += z0 * b0 + z1 * b1 + z2 * b2 + z3 * b3
            into[3 * LINE + j] += w0 * b0 + w1 * b1 + w2 * b2 + w3 * b3


@sums
def products(into: Floats, left: Floats, right: Floats, depth: int, count: int) -> None:
    """into[r, j] = Σ_d left[r, d] · right[d, j] for QUERIES rows r, depth d, j < count; left lies row by row."""
    for d in range(0, depth, 4):
        b = right[d * LINE : (d + 4) * LINE]
        for r in range(0, QUERIES, 4):
            _add_four(into[r * LINE :], left, r * depth + d, 1, depth, b, count, d == 0)


@sums
def add_transposed_products(into: Floats, left: Floats, right: Floats, width: int, count: int) -> None:
    """into[d, j] += Σ_r left[r, d] · right[r, j] for width d, QUERIES rows r, j < count."""
    for d in range(0, width, 4):
        for r in range(0, QUERIES, 4):
            _add_four(into[d * LINE :], left, r * width + d, width, 1, right[r * LINE :], count, False)


@sums
def add_inner_products(into: Floats, left: Floats, right: Floats, width: int, count: int, fresh: bool) -> None:
    """into[r, d] += Σ_j left[r, j] · right[d, j] for QUERIES rows r, width d, j < count; into lies row by row. `fresh`:
    what was there does not count."""
    for d in range(0, width, 4):
        b = right[d * LINE : (d + 4) * LINE]
        for r in range(0, QUERIES, 4):
            a = left[r * LINE : (r + 4) * LINE]
            x0 = x1 = x2 = x3 = y0 = y1 = y2 = y3 = z0 = z1 = z2 = z3 = w0 = w1 = w2 = w3 = f4(0)
            for j in range(count):
                a0, a1, a2, a3 = a[j], a[LINE + j], a[2 * LINE + j], a[3 * LINE + j]
                b0, b1, b2, b3 = b[j], b[LINE + j], b[2 * LINE + j], b[3 * LINE + j]
                x0, x1, x2, x3 = x0 + a0 * b0, x1 + a0 * b1, x2 + a0 * b2, x3 + a0 * b3
                y0, y1, y2, y3 = y0 + a1 * b0, y1 + a1 * b1, y2 + a1 * b2, y3 + a1 * b3
                z0, z1, z2, z3 = z0 + a2 * b0, z1 + a2 * b1, z2 + a2 * b2, z3 + a2 * b3
                w0, w1, w2, w3 = w0 + a3 * b0, w1 + a3 * b1, w2 + a3 * b2, w3 + a3 * b3
            _add_row(into[r * width + d :], x0, x1, x2, x3, fresh)
            _add_row(into[(r + 1) * width + d :], y0, y1, y2, y3, fresh)
            _add_row(into[(r + 2) * width + d :], z0, z1, z2, z3, fresh)
            _add_row(into[(r + 3) * width + d :], w0, w1, w2, w3, fresh)


@compiled()
def _add_row(into: Floats, a: Real, b: Real, c: Real, d: Real, fresh: bool) -> None:
    if fresh:
        into[0], into[1], into[2], into[3] = a, b, c, d
    else:
        into[0], into[1], into[2], into[3] = into[0] + a, into[1] + b, into[2] + c, into[3] + d


@compiled("reassoc", "nsz", "nnan")
def largest(line: Floats, least: Real) -> Real:
    """The largest number of a line, or `least`. With a NaN among them, any: `exponentials` of the line has it still."""
    most = least
    for j in range(len(line)):
        most = max(most, line[j])
    return most


@compiled("contract")
def exponentials(line: Floats, shift: Real) -> None:
    """exp(x - shift) in place, to within two units in the last place; 0 below the smallest normal number.

    The way of Cephes: a power of two, and a polynomial for what is left (Moshier, expf).
    """
    for j in range(len(line)):
        x = line[j] - shift
        power = np.floor(x * LOG2_E + f4(0.5))
        r = x - power * LN2_HIGH - power * LN2_LOW
        p = f4(1.98756915e-4) * r + f4(1.39819995e-3)
        p = p * r + f4(8.33345191e-3)
        p = p * r + f4(4.16657959e-2)
        p = p * r + f4(1.66666655e-1)
        p = p * r + f4(5.00000012e-1)
        p = p * r * r + r + f4(1)
        line[j] = f4(0) if x < SMALLEST else p * i4((i4(power) + i4(127)) << i4(23)).view(f4)


@sums
def total(line: Floats) -> Real:
    """The sum of a line."""
    result = f4(0)
    for j in range(len(line)):
        result += line[j]
    return result


@sums
def inner_product(left: Floats, right: Floats) -> Real:
    """The sum of left · right."""
    result = f4(0)
    for j in range(len(left)):
        result += left[j] * right[j]
    return result


@sums
def times_difference(line: Floats, factors: Floats, shift: Real) -> None:
    """factors · (line - shift), in place."""
    for j in range(len(line)):
        line[j] = factors[j] * (line[j] - shift)


@compiled()
def fill(line: Floats, value: Real) -> None:
    """The same number everywhere."""
    for j in range(len(line)):
        line[j] = value


@compiled()
def scale(line: Floats, factor: Real) -> None:
    """Each number of a line times a factor, in place."""
    for j in range(len(line)):
        line[j] *= factor


@compiled()
def scale_by_line(line: Floats, other: Floats, slope: Real, offset: Real) -> None:
    """Each number of a line times slope · other + offset, in place."""
    for j in range(len(line)):
        line[j] *= slope * other[j] + offset


@compiled()
def copy(into: Floats, line: Floats) -> None:
    """The same numbers in another line."""
    for j in range(len(line)):
        into[j] = line[j]
