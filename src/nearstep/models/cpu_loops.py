"""The inner loops of what runs on a CPU, float32, compiled by numba: exponentials, sums, copies.

All of them run along a line, so the compiler can use vectors of any width; loops of sums may be reordered for that.
Infinities and NaNs keep their meaning.
"""

import hashlib
import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numba import njit
from numba.core.caching import FunctionCache

from nearstep.models.cpu_tiles import LANES, Floats, raise_to_largest

Real: TypeAlias = "float | np.floating[Any]"
Loop = TypeVar("Loop", bound=Callable[..., Any])

FILES = (
    "attention_kernels",
    "attention_layout",
    "cpu_loops",
    "cpu_tiles",
    "layer_kernels",
    "logits_kernels",
    "products_kernels",
)
NEVER = np.float32(-1e30)  # the score of what is not seen: finite, so that differences are
f4, i4 = np.float32, np.int32
LOG2_E, LN2_HIGH, LN2_LOW = f4(1.44269504), f4(0.693359375), f4(-2.12194440e-4)
SMALLEST = f4(-87.0)  # its exponential is just above the smallest normal number


@cache
def _sources() -> str:
    """What tells one state of all files of loops from another."""
    return hashlib.sha256(b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in FILES)).hexdigest()


class _Cache(FunctionCache):  # type: ignore[misc]
    """Numba's cache, whose entries also depend on all files of loops and not only on the function's own: compiled, a
    loop contains those that it calls."""

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (*super()._index_key(signature, codegen), _sources())


def compiled(*relaxed: str) -> Callable[[Loop], Loop]:
    """Compile at the first call, with these liberties in the arithmetic; keep it on the disk if there is a folder."""

    def compile_it(function: Loop) -> Loop:
        plain = inspect.unwrap(function)  # of what checks shapes in tests
        loop = njit(nogil=True, error_model="numpy", fastmath=set(relaxed))(plain)
        with suppress(RuntimeError):  # numba found no folder
            loop._cache = _Cache(plain)
        return loop  # type: ignore[no-any-return]

    return compile_it


sums = compiled("reassoc", "contract", "nsz")


@compiled()
def scratch(size: int) -> Floats:
    """Memory that begins where a vector may."""
    raw = np.empty(size + LANES, f4)
    skip = (-raw.ctypes.data // 4) % LANES
    return raw[skip : skip + size]


@compiled()
def largest(line: Floats, least: Real) -> Real:
    """The largest number of a line, or `least`. With a NaN among them, any: `exponentials` of the line has it still."""
    most, whole = np.full(LANES, least, f4), len(line) // LANES
    raise_to_largest(most, line, whole)
    found = least
    for j in range(LANES):
        found = max(found, most[j])
    for j in range(whole * LANES, len(line)):
        found = max(found, line[j])
    return found


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
