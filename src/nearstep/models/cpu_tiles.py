"""The innermost steps of the loops for a CPU, on vectors that stay in registers: written for LLVM.

From plain loops no compiler finds them: it keeps a sum of products in memory as soon as there are several. Each step
stands here twice: in Python, which says what it does and runs where numba's compiler is switched off, and below as the
instructions that it is compiled to. Numbers are float32; LANES of them are a vector, and ROWS vectors a tile.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload

Floats: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
ROWS, LANES = 8, 16
INDEX, NUMBER = ir.IntType(64), ir.FloatType()
VECTOR = ir.VectorType(NUMBER, LANES)


class Lines(NamedTuple):
    """Lines of numbers in an array: where the first begins, and how far apart they are."""

    numbers: Floats
    first: int
    apart: int


def multiply(into: Lines, start: Lines, left: Lines, step: int, right: Lines, depth: int) -> None:
    """into[r, l] = start[r, l] + Σ_k left[r, k] · right[k, l] for ROWS lines r, LANES numbers l and `depth` numbers k.

    The numbers of a line of `left` are `step` apart, so that it may lie across. `start` may be `into`.
    """
    lines, along = np.arange(ROWS)[:, None], np.arange(LANES)
    a = left.numbers[left.first + lines * left.apart + np.arange(depth) * step]
    b = right.numbers[right.first + np.arange(depth)[:, None] * right.apart + along]
    c = start.numbers[start.first + lines * start.apart + along]
    into.numbers[into.first + lines * into.apart + along] = c + a @ b


def transpose(into: Lines, lines: Lines) -> None:
    """into[i, j] = lines[j, i] for LANES lines of LANES numbers."""
    down, along = np.arange(LANES)[:, None], np.arange(LANES)
    into.numbers[into.first + down * into.apart + along] = lines.numbers[lines.first + along * lines.apart + down]


def raise_to_largest(most: Floats, lines: Floats, count: int) -> None:
    """most[l] = max(most[l], all lines[j, l]) for `count` vectors one behind the other. A NaN may be passed over."""
    for line in lines[: count * LANES].reshape(count, LANES):
        most[:LANES] = np.fmax(most[:LANES], line)


def add_lines(sums: Floats, lines: Floats, count: int) -> None:
    """sums[l] += Σ_j lines[j, l] for `count` vectors one behind the other."""
    sums[:LANES] += lines[: count * LANES].reshape(count, LANES).sum(0)


def lower(lines: Floats, count: int, by: Floats) -> None:
    """lines[j, l] −= by[l] for `count` vectors one behind the other."""
    lines[: count * LANES].reshape(count, LANES)[...] -= by[:LANES]


Values: TypeAlias = tuple[ir.Value, ...]


def _vector(builder: ir.IRBuilder, numbers: ir.Value, place: ir.Value, kind: ir.Type = VECTOR) -> ir.Value:
    """The address of a vector."""
    return builder.bitcast(builder.gep(numbers, [place]), kind.as_pointer())


def _line(builder: ir.IRBuilder, lines: Values, number: int) -> ir.Value:
    """Where a line begins."""
    _, first, apart = lines
    return builder.add(first, builder.mul(apart, INDEX(number)))


@intrinsic  # type: ignore[untyped-decorator]
def _multiply(typing: Any, into: Any, start: Any, left: Any, step: Any, right: Any, depth: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Values) -> ir.Value:
        c, s, a, b = (_lines_of(context, builder, signature.args[n], given[n]) for n in (0, 1, 2, 4))
        lanes = LANES if "+avx512f" in context.codegen().magic_tuple()[2] else 8  # as many sums as there are registers
        vector = ir.VectorType(NUMBER, lanes)
        rows = [builder.gep(a[0], [_line(builder, a, row)]) for row in range(ROWS)]
        for lane in range(0, LANES, lanes):
            sums = [cgutils.alloca_once(builder, vector) for _ in range(ROWS)]
            for row, total in enumerate(sums):
                place = builder.add(_line(builder, s, row), INDEX(lane))
                builder.store(builder.load(_vector(builder, s[0], place, vector), align=4), total)
            with cgutils.for_range(builder, given[5], intp=INDEX) as loop:
                place = builder.add(builder.add(b[1], builder.mul(loop.index, b[2])), INDEX(lane))
                factors = builder.load(_vector(builder, b[0], place, vector), align=4)
                along = builder.mul(loop.index, given[3])
                for row, total in zip(rows, sums, strict=True):
                    number = _everywhere(builder, builder.load(builder.gep(row, [along])), vector)
                    product = builder.fmul(number, factors, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
            for row, total in enumerate(sums):
                place = builder.add(_line(builder, c, row), INDEX(lane))
                builder.store(builder.load(total), _vector(builder, c[0], place, vector), align=4)
        return context.get_dummy_value()

    return types.void(into, start, left, types.int64, right, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def _transpose(typing: Any, into: Any, lines: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Values) -> ir.Value:
        c, a = (_lines_of(context, builder, kind, value) for kind, value in zip(signature.args, given, strict=True))
        found = [builder.load(_vector(builder, a[0], _line(builder, a, n)), align=4) for n in range(LANES)]
        for size in (1, 2, 4, 8):  # exchange blocks beside the diagonal, of this size
            low = [lane if not lane & size else LANES + lane - size for lane in range(LANES)]
            high = [lane + size if not lane & size else LANES + lane for lane in range(LANES)]
            for n in (number for number in range(LANES) if not number & size):
                pair = found[n], found[n + size]
                found[n], found[n + size] = (
                    builder.shuffle_vector(*pair, ir.Constant(ir.VectorType(ir.IntType(32), LANES), places))
                    for places in (low, high)
                )
        for n, line in enumerate(found):
            builder.store(line, _vector(builder, c[0], _line(builder, c, n)), align=4)
        return context.get_dummy_value()

    return types.void(into, lines), generate


def _fold(combine: Callable[[ir.IRBuilder, ir.Value, ir.Value], ir.Value]) -> Any:
    """What brings one vector together with many."""

    @intrinsic  # type: ignore[untyped-decorator]
    def fold(typing: Any, vector: Any, lines: Any, count: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Values) -> ir.Value:
            place, numbers = (_numbers_of(context, builder, signature.args[n], given[n]) for n in (0, 1))
            where, held = _vector(builder, place, INDEX(0)), cgutils.alloca_once(builder, VECTOR)
            builder.store(builder.load(where, align=4), held)
            with cgutils.for_range(builder, given[2], intp=INDEX) as loop:
                line = _vector(builder, numbers, builder.mul(loop.index, INDEX(LANES)))
                builder.store(combine(builder, builder.load(held), builder.load(line, align=4)), held)
            builder.store(builder.load(held), where, align=4)
            return context.get_dummy_value()

        return types.void(vector, lines, types.int64), generate

    return fold


_raise = _fold(lambda builder, most, line: builder.select(builder.fcmp_ordered(">", line, most), line, most))
_add = _fold(lambda builder, total, line: builder.fadd(total, line))


@intrinsic  # type: ignore[untyped-decorator]
def _lower(typing: Any, lines: Any, count: Any, by: Any) -> Any:
    def generate(context: Any, builder: ir.IRBuilder, signature: Any, given: Values) -> ir.Value:
        numbers, shifts = (_numbers_of(context, builder, signature.args[n], given[n]) for n in (0, 2))
        shift = builder.load(_vector(builder, shifts, INDEX(0)), align=4)
        with cgutils.for_range(builder, given[1], intp=INDEX) as loop:
            where = _vector(builder, numbers, builder.mul(loop.index, INDEX(LANES)))
            builder.store(builder.fsub(builder.load(where, align=4), shift), where, align=4)
        return context.get_dummy_value()

    return types.void(lines, types.int64, by), generate


def _numbers_of(context: Any, builder: ir.IRBuilder, kind: Any, array: ir.Value) -> ir.Value:
    """The address of an array's first number."""
    return context.make_array(kind)(context, builder, array).data


def _lines_of(context: Any, builder: ir.IRBuilder, kind: Any, lines: ir.Value) -> Values:
    """The fields of `Lines`, the array as its address."""
    array, first, apart = cgutils.unpack_tuple(builder, lines, 3)
    return _numbers_of(context, builder, kind.types[0], array), first, apart


def _everywhere(builder: ir.IRBuilder, number: ir.Value, vector: ir.VectorType) -> ir.Value:
    """A vector of the same number."""
    nothing, first = ir.Constant(vector, ir.Undefined), ir.IntType(32)(0)
    alone = builder.insert_element(nothing, number, first)
    return builder.shuffle_vector(alone, nothing, ir.Constant(ir.VectorType(ir.IntType(32), vector.count), None))


# What numba compiles where one of the steps above is called.
overload(multiply)(lambda into, start, left, step, right, depth: (
    lambda into, start, left, step, right, depth: _multiply(into, start, left, step, right, depth)
))  # fmt: skip
overload(transpose)(lambda into, lines: lambda into, lines: _transpose(into, lines))
overload(raise_to_largest)(lambda most, lines, count: lambda most, lines, count: _raise(most, lines, count))
overload(add_lines)(lambda sums, lines, count: lambda sums, lines, count: _add(sums, lines, count))
overload(lower)(lambda lines, count, by: lambda lines, count, by: _lower(lines, count, by))
