"""Products in loops: the numbers of float64, whatever the shapes; torch's own where they do not fit."""

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.models import products
from nearstep.models.products import FEWEST, LANES, add_outer, outer, times, times_across, times_into

NUMBA = importlib.util.find_spec("numba") is not None
SHAPES = [(32, 16, 16), (33, 32, 48), (39, 16, 528), (40, 1040, 16), (130, 48, 1056), (135, 144, 32), (520, 16, 32)]


def matrices(tokens, width, wide):
    """States, weight, gradient of the product, and two matrices to begin with."""
    draws = torch.Generator().manual_seed(tokens)
    shapes = (tokens, width), (wide, width), (tokens, wide), (tokens, wide), (tokens, width)
    return [torch.randn(shape, generator=draws) for shape in shapes]


def assert_close(found, expected):
    """Relative to the largest of them: a sum loses digits where its terms cancel."""
    assert found.dtype == torch.float32
    assert (found.double() - expected).abs().max() < 3e-6 * expected.abs().max()


def assert_right(tokens, width, wide):
    x, w, g, begin, begin_back = matrices(tokens, width, wide)
    exact_x, exact_w, exact_g = x.double(), w.double(), g.double()
    forward, back, of_weight = exact_x @ exact_w.T, exact_g @ exact_w, exact_g.T @ exact_x
    assert_close(times(x, w), forward)
    assert_close(times(x, w, begin), begin.double() + forward)
    assert_close(times(x, w, begin[:1]), begin[:1].double() + forward)
    assert_close(times_across(g, w), back)
    assert_close(times_across(g, w, begin_back), begin_back.double() + back)
    assert_close(outer(g, x), of_weight)
    total = w.clone()
    add_outer(total, g, x)
    assert_close(total, exact_w + of_weight)


@pytest.mark.parametrize("shape", [*SHAPES, (1, 16, 16), (31, 16, 32), (40, 20, 16), (40, 16, 5)])
def test_products_are_those_of_float64(shape):
    assert_right(*shape)


@settings(max_examples=40, deadline=None)
@given(st.integers(FEWEST, 300), st.integers(1, 9), st.integers(1, 9))
def test_any_shape(tokens, vectors, wide_vectors):
    assert_right(tokens, LANES * vectors, LANES * wide_vectors)


def test_nothing_beside_the_result_is_written():
    x, w, *_ = matrices(37, 16, 32)
    room = torch.full((60, 32), 7.0)
    times_into(room[10:47], x, w)
    assert (room[:10] == 7).all()
    assert (room[47:] == 7).all()
    assert_close(room[10:47], x.double() @ w.double().T)


def test_memory_that_is_full_of_nans_is_only_written():
    x, w, g, *_ = matrices(37, 16, 32)
    room = torch.full((37, 32), torch.nan)
    assert times_into(room, x, w).isfinite().all()
    total = torch.full((32, 16), 1.0)
    add_outer(total, g, x)
    assert total.isfinite().all()


@pytest.mark.parametrize("place", [0, 33, 36])
def test_a_broken_number_stays_in_its_line(place):
    x, w, *_ = matrices(37, 16, 32)
    x[place, 3] = torch.nan
    broken = times(x, w).isnan()
    assert broken[place].all()
    assert broken.sum() == 32


def test_a_lines_product_does_not_depend_on_the_others():
    """Not by a bit: it is summed in the same order in a tile, at the end, and among more."""
    if not NUMBA:
        pytest.skip("numba is not installed: torch sums as it likes")
    x, w, *_ = matrices(300, 64, 48)
    whole = times(x, w)
    for first, last in ((0, 32), (5, 44), (259, 300)):
        assert torch.equal(times(x[first:last].contiguous(), w), whole[first:last])


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_no_bit(threads):
    if not NUMBA:
        pytest.skip("numba is not installed: torch sums as it likes")
    x, w, g, *_ = matrices(700, 1040, 528)
    alone = times(x, w), times_across(g, w), outer(g, x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = times(x, w), times_across(g, w), outer(g, x)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.skipif(not NUMBA, reason="numba is not installed")
@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda x, w: (x, w), True),
        (lambda x, w: (x[:FEWEST - 1], w), False),
        (lambda x, w: (x.double(), w.double()), False),
        (lambda x, w: (x.bfloat16(), w.bfloat16()), False),
        (lambda x, w: (x.T.contiguous().T, w), False),
        (lambda x, w: (x[:, :8].contiguous(), w[:, :8].contiguous()), False),
        (lambda x, w: (x, w[:7]), False),
    ],
)  # fmt: skip
def test_what_does_not_fit_goes_to_torch(change, fits, monkeypatch):
    x, w, *_ = matrices(40, 32, 16)
    x, w = change(x, w)
    calls = []
    in_loops = products._in_loops
    monkeypatch.setattr(products, "_in_loops", lambda *given, **named: calls.append(1) or in_loops(*given, **named))
    torch.testing.assert_close(times(x, w), x @ w.T, rtol=1e-2 if x.dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    assert bool(calls) == fits


def test_without_numba_torch_multiplies(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("loops without numba")

    monkeypatch.setattr(products, "loops_there", lambda: False)
    monkeypatch.setattr(products, "_in_loops", refuse)
    monkeypatch.setattr(products, "_outer_in_loops", refuse)
    assert_right(40, 32, 16)
