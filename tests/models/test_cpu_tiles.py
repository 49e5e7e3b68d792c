"""The steps on vectors: they compute what their Python says, and no compiled loop is kept too long."""

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("numba") is None:
    pytest.skip("numba is not installed", allow_module_level=True)

from numba import njit

from nearstep.models import cpu_loops
from nearstep.models.cpu_loops import FILES, compiled
from nearstep.models.cpu_tiles import LANES, ROWS, Lines, add_lines, lower, multiply, raise_to_largest, transpose

MODELS = Path(cpu_loops.__file__).parent


def numbers(count, seed=0):
    return np.random.default_rng(seed).standard_normal(count, np.float32)


def fold(most, sums, lines, count):
    raise_to_largest(most, lines, count)
    add_lines(sums, lines, count)
    lower(lines, count, most)


def lines_from(into, start, left, step, right, depth):
    multiply(into, start, left, step, right, depth)


def turned(into, lines):
    transpose(into, lines)


def test_a_product_by_hand():
    """2 · 10 + 3 · 100 in every place of a tile, and 5 that was there."""
    into, left = np.full(ROWS * LANES, 5, np.float32), np.tile(np.array([2, 3], np.float32), ROWS)
    right = np.repeat(np.array([10, 100], np.float32), LANES)
    tile = Lines(into, 0, LANES)
    njit(lines_from)(tile, tile, Lines(left, 0, 2), 1, Lines(right, 0, LANES), 2)
    assert (into == 325).all()


@pytest.mark.parametrize("depth", [0, 1, 7, 32])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_products_are_those_of_python(depth, across, fresh):
    left, right = numbers(50 * 60, 1), numbers(50 * 60, 2)
    factors, step = (Lines(left, 3, 1), 50) if across else (Lines(left, 3, 40), 1)
    found = []
    for run in (njit(lines_from), lines_from):
        into = numbers(ROWS * 20 + 5)
        place = Lines(into, 5, 20)
        start = Lines(np.full(LANES, 7, np.float32), 0, 0) if fresh else place
        run(place, start, factors, step, Lines(right, 4, 30), depth)
        found.append(into)
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)
    outside = np.ones(len(found[0]), bool)
    outside[(5 + 20 * np.arange(ROWS)[:, None] + np.arange(LANES)).reshape(-1)] = False
    assert (found[0][outside] == numbers(len(outside))[outside]).all()


SHORTER_VECTORS = """
import types, sys
import numpy as np

root = sys.argv[1]
for name, folder in (("nearstep", root), ("nearstep.models", root + "/models")):  # without torch
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from numba import njit
from nearstep.models.cpu_tiles import LANES, ROWS, Lines, multiply


@njit
def run(into, left, right):
    tile = Lines(into, 0, LANES)
    multiply(tile, tile, Lines(left, 0, 5), 1, Lines(right, 0, LANES), 5)


draws = np.random.default_rng(0)
left, right = draws.standard_normal(ROWS * 5, np.float32), draws.standard_normal(5 * LANES, np.float32)
into = np.ones(ROWS * LANES, np.float32)
run(into, left, right)
assert np.allclose(into.reshape(ROWS, LANES), 1 + left.reshape(ROWS, 5) @ right.reshape(5, LANES), atol=1e-5)
assembly = "".join(run.inspect_asm().values())
assert "ymm" in assembly and "zmm" not in assembly
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="another kind of processor")
def test_a_processor_with_vectors_of_eight_numbers_computes_the_same():
    shorter = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx,+sse4.2"}
    command = [sys.executable, "-c", SHORTER_VECTORS, str(MODELS.parent)]
    subprocess.run(command, env=os.environ | shorter, check=True, timeout=60)


def test_lines_become_columns():
    square = np.arange(LANES * LANES, dtype=np.float32)
    into = np.zeros(LANES * 20 + 1, np.float32)
    njit(turned)(Lines(into, 1, 20), Lines(square, 0, LANES))
    assert (into[1:].reshape(LANES, 20)[:, :LANES] == square.reshape(LANES, LANES).T).all()
    again = np.zeros_like(into)
    turned(Lines(again, 1, 20), Lines(square, 0, LANES))
    assert (again == into).all()


@pytest.mark.parametrize("count", [0, 1, 9])
def test_vectors_are_brought_together(count):
    found = []
    for run in (njit(fold), fold):
        most, sums, lines = numbers(LANES, 1), numbers(LANES, 2), numbers(LANES * 10, 3)
        run(most, sums, lines, count)
        found.append(np.concatenate([most, sums, lines]))
    np.testing.assert_allclose(*found, rtol=1e-6, atol=1e-6)
    most = np.maximum(numbers(LANES, 1), numbers(LANES * 10, 3)[: count * LANES].reshape(-1, LANES).max(0, initial=-9))
    assert (found[0][:LANES] == most).all()


def test_a_nan_does_not_become_the_largest():
    most, lines = np.zeros(LANES, np.float32), np.ones(2 * LANES, np.float32)
    lines[3] = np.nan
    for run in (njit(fold), fold):
        run(most.copy(), most.copy(), lines.copy(), 2)
    assert cpu_loops.largest(lines, np.float32(0)) == 1


@pytest.mark.parametrize("count", [1, 15, 16, 17, 100])
def test_the_largest_of_a_line(count):
    line = numbers(count)
    for place in {0, count // 2, count - 1}:
        changed = line.copy()
        changed[place] = 10
        assert cpu_loops.largest(changed, np.float32(-3)) == 10
    assert cpu_loops.largest(-np.abs(line) - 4, np.float32(-3)) == -3


def test_a_loop_is_compiled_again_when_any_file_of_loops_has_changed(monkeypatch):
    """Numba alone asks only for the file of the function itself."""
    loop = cpu_loops.fill
    key = loop._cache._index_key((), loop.targetctx.codegen())
    assert loop._cache._index_key((), loop.targetctx.codegen()) == key
    monkeypatch.setattr(cpu_loops, "_sources", lambda: "another")
    assert loop._cache._index_key((), loop.targetctx.codegen()) != key


def test_all_files_of_loops_are_known():
    texts = {path.stem: path.read_text() for path in MODELS.glob("*.py")}
    with_loops = {name for name, text in texts.items() if "\n@compiled(" in text or "\n@intrinsic" in text}
    assert with_loops == set(FILES)


def test_where_there_is_no_folder_loops_are_compiled_and_not_kept(monkeypatch):
    def refuse(_):
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(cpu_loops, "_Cache", refuse)

    @compiled()
    def twice(number):
        return 2 * number

    assert twice(4) == 8
