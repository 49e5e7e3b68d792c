"""Attention in loops compiled for this CPU: the same numbers as row by row in float64, and whose work is whose."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.models import attention_cpu
from nearstep.models.attention import choice as attention_choice
from nearstep.models.attention.choice import kernel_of_model, plan_of
from nearstep.models.attention.interface import LayerInput, Segment, Segments
from nearstep.models.attention.varlen import Kernel
from nearstep.models.attention_cpu import SegmentsOnCPU
from tests.tiny import tiny_causal_lm

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")

CPU = torch.device("cpu")
ROOM_OF_NANS = """
import itertools, sys, types
import numpy as np

root = sys.argv[1]
for name, folder in (("nearstep", root), ("nearstep.models", root + "/models")):  # without torch
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
import nearstep.models.attention_kernels as kernels
from nearstep.models.attention_layout import Inputs, Part

kernels.scratch = lambda size: np.full(size, np.nan, np.float32)
draws = np.random.default_rng(0)


def states(*shape):
    return draws.standard_normal(shape, np.float32)


def inputs(query, key, value, firsts, angles):
    return Inputs(query, key, value, firsts, *angles)


def finite(found):
    for states in found:
        assert np.isfinite(states).all()
        assert np.abs(states).max() > 0


kernels.BLOCK = 8
table = np.array([[0, 5, 0, 0, 0], [5, 35, 0, 0, 0], [40, 6, 2, 0, 5]])
apart = (states(46, 2, 4), states(46, 1, 4), states(46, 1, 12), (0, 0, 0), (np.zeros((0, 0), np.float32),) * 2)
joined = states(46, 4, 6)
side_by_side = (joined, joined, joined, (0, 2, 3), (states(46, 6), states(46, 6)))
for given, window in itertools.product((apart, side_by_side), (1, 2, 18, 19, 2**40)):
    part = Part(0, 1, 2, window, np.float32(0.5))
    out, log_sums = np.zeros((46, 2, given[2].shape[2]), np.float32), np.zeros((2, 46), np.float32)
    kernels.attend(inputs(*given), table, part, out, log_sums)
    gradient = states(*out.shape)
    room = {id(one): np.zeros_like(one) for one in given[:3]}
    gradients = [room[id(one)] for one in given[:3]]
    shifts = (out * gradient).sum(2)
    of_inputs = inputs(*gradients, *given[3:])
    kernels.differentiate(inputs(*given), table, part, log_sums, gradient, shifts, of_inputs)
    finite([out, log_sums, *gradients])
"""
SHARED = (Segment(5), Segment(4), Segment(3, prefix=1), Segment(1, prefix=1), Segment(6), Segment(2, prefix=4))
# Rows of several blocks of 256 keys, borders on and beside multiples of what is worked on at a time.
LONG = (Segment(256), Segment(257), Segment(1), Segment(250), Segment(300, prefix=3), Segment(7, prefix=3), Segment(16))


def layer_of(
    segments, *, heads=4, kv_heads=2, width=8, value_width=None, window=None, scaling=0.3, dtype=torch.float32
):
    draws = torch.Generator().manual_seed(0)
    tokens = sum(segment.length for segment in segments)

    def states(count, wide):
        return torch.randn(1, count, tokens, wide, generator=draws).to(dtype).requires_grad_()

    query, key, value = states(heads, width), states(kv_heads, width), states(kv_heads, value_width or width)
    return LayerInput(0, query, key, value, scaling, window, None)


def doubled(layer):
    states = (states.detach().double().requires_grad_() for states in (layer.query, layer.key, layer.value))
    return LayerInput(layer.layer, *states, layer.scaling, layer.window, layer.softcap)


def output_and_gradients(plan, layer):
    output = plan.attend(layer)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return output, *torch.autograd.grad(output, (layer.query, layer.key, layer.value), weights)


def assert_equal_to_row_by_row(segments, layer, tolerance=4e-6):
    found = output_and_gradients(SegmentsOnCPU(segments), layer)
    expected = output_and_gradients(Segments(segments), doubled(layer))
    for name, ours, theirs in zip(("output", "query", "key", "value"), found, expected, strict=True):
        error = (ours.detach().double() - theirs.detach()).abs().max() / theirs.detach().abs().max().clamp(min=1)
        assert error < tolerance, (name, error)


@pytest.mark.parametrize("segments", [(Segment(1),), (Segment(9), Segment(8), Segment(17)), SHARED, LONG], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (4, 2), (3, 1)])
def test_outputs_and_gradients_are_those_of_row_by_row_in_float64(segments, heads, kv_heads):
    assert_equal_to_row_by_row(segments, layer_of(segments, heads=heads, kv_heads=kv_heads))


@pytest.mark.parametrize("window", [1, 3, 16, 40, 256, 300])
def test_windows(window):
    segments = (*LONG[:4], Segment(70))
    assert_equal_to_row_by_row(segments, layer_of(segments, window=window))


@pytest.mark.parametrize("window", [2, 60, 280])
def test_a_window_reaches_into_the_prefix(window):
    assert_equal_to_row_by_row(LONG, layer_of(LONG, window=window))


def test_values_may_be_of_another_width():
    assert_equal_to_row_by_row(SHARED, layer_of(SHARED, width=12, value_width=20))


def test_without_a_scale_it_is_that_of_the_width():
    layer = layer_of(SHARED, scaling=None, width=16)
    explicit = LayerInput(0, layer.query, layer.key, layer.value, 0.25, None, None)
    torch.testing.assert_close(SegmentsOnCPU(SHARED).attend(layer), SegmentsOnCPU(SHARED).attend(explicit))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_segments(data):
    segments = []
    for _ in range(data.draw(st.integers(1, 4))):
        prefix = len(segments)
        segments.append(Segment(data.draw(st.integers(1, 40))))
        segments += [Segment(data.draw(st.integers(1, 20)), prefix) for _ in range(data.draw(st.integers(0, 3)))]
    group, kv_heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2))
    window = data.draw(st.none() | st.integers(1, 50))
    layer = layer_of(tuple(segments), heads=group * kv_heads, kv_heads=kv_heads, window=window)
    assert_equal_to_row_by_row(tuple(segments), layer)


def test_scores_that_differ_by_hundreds_are_exact():
    """The softmax subtracts the largest score; weights below the smallest float are 0, not noise."""
    segments = (Segment(30),)
    layer = layer_of(segments, heads=1, kv_heads=1, width=4, scaling=1.0)
    large = LayerInput(0, layer.query.detach() * 300, layer.key.detach(), layer.value.detach(), 1.0, None, None)
    ours = SegmentsOnCPU(segments).attend(large)
    theirs = Segments(segments).attend(doubled(large))
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["query", "key", "value"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_what_is_no_number_stays_so_in_its_row_and_stays_in_it(which, poison):
    segments = (Segment(20), Segment(20), Segment(300))
    layer = layer_of(segments)
    getattr(layer, which).data[0, 0, 25] = poison
    output = SegmentsOnCPU(segments).attend(layer)
    assert not output[0, :, 25].isfinite().all()
    assert output[0, :, :20].isfinite().all()
    assert output[0, :, 40:].isfinite().all()


def test_no_segment_sees_another():
    """Any key or value of a stranger may change, as far as it likes, and not a bit of the output does."""
    layer = layer_of(SHARED)
    before = SegmentsOnCPU(SHARED).attend(layer)
    ends = np.cumsum([segment.length for segment in SHARED])
    for number, end in enumerate(ends):
        changed = layer_of(SHARED)
        start = end - SHARED[number].length
        for states in (changed.key, changed.value):
            states.data[:, :, start:end] += 1000
        after = SegmentsOnCPU(SHARED).attend(changed)
        for other, other_end in enumerate(ends):
            if other != number and SHARED[other].prefix != number:
                place = slice(other_end - SHARED[other].length, other_end)
                assert torch.equal(before[:, :, place], after[:, :, place]), (number, other)


def test_a_token_sees_none_that_come_after_it():
    layer = layer_of(LONG)
    before = SegmentsOnCPU(LONG).attend(layer)
    for place in (3, 255, 300, 512):
        changed = layer_of(LONG)
        for states in (changed.key, changed.value):
            states.data[:, :, place] += 1000
        after = SegmentsOnCPU(LONG).attend(changed)
        assert torch.equal(before[:, :, :place], after[:, :, :place])
        assert not torch.equal(before[:, :, place], after[:, :, place])


def test_what_nobody_asks_is_zero_and_the_rest_is_as_before():
    places = torch.tensor([7, 300, 511, 530, 600, 600, 1070])
    firsts = (7, 44, 1, 16, 300, 6, 16)  # by hand, from the ends 256, 513, 514, 764, 1064, 1071, 1087
    plan = SegmentsOnCPU(LONG).asking_only(places)
    assert plan.first_asked == firsts
    asked = torch.cat([torch.arange(segment.length) >= first for segment, first in zip(LONG, firsts, strict=True)])
    whole, part = layer_of(LONG), layer_of(LONG)
    weights = torch.randn(1, 4, 1087, 8, generator=torch.Generator().manual_seed(2)) * asked[:, None]
    outputs = SegmentsOnCPU(LONG).attend(whole), plan.attend(part)
    torch.testing.assert_close(outputs[1], outputs[0] * asked[:, None], rtol=1e-5, atol=1e-6)
    assert not outputs[1][:, :, ~asked].any()
    for name in ("query", "key", "value"):
        gradients = [
            torch.autograd.grad(output, getattr(layer, name), weights, retain_graph=True)[0]
            for output, layer in zip(outputs, (whole, part), strict=True)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_what_lay_in_memory_before_is_never_read():
    """The same loops as plain Python, in memory full of NaNs."""
    root = Path(attention_cpu.__file__).parents[1]
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", ROOM_OF_NANS, str(root)], env=environment, check=True, timeout=60)


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_change_no_bit(threads):
    alone = output_and_gradients(SegmentsOnCPU(LONG), layer_of(LONG))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = output_and_gradients(SegmentsOnCPU(LONG), layer_of(LONG))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_threads_share_the_work_and_families_stay_together():
    shares = SegmentsOnCPU(LONG).shares(key_heads=2, threads=2)
    assert [(table[:, 1].tolist(), first, heads) for table, first, heads in shares] == [
        ([256, 257, 1], 0, 2),
        ([250, 300, 7, 16], 0, 2),
    ]
    [(table, *everything)] = SegmentsOnCPU(LONG).shares(key_heads=2, threads=1)
    assert everything == [0, 2]
    assert table.tolist() == [
        [0, 256, 0, 0, 0], [256, 257, 0, 0, 0], [513, 1, 0, 0, 0], [514, 250, 0, 0, 0],
        [764, 300, 0, 514, 250], [1064, 7, 0, 514, 250], [1071, 16, 0, 0, 0],
    ]  # fmt: skip


def test_one_long_row_is_shared_by_heads():
    shares = SegmentsOnCPU((Segment(9),)).shares(key_heads=3, threads=2)
    assert [(first, heads) for _, first, heads in shares] == [(0, 1), (1, 2)]
    assert len(SegmentsOnCPU((Segment(9),)).shares(key_heads=3, threads=8)) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_types_attend_in_float32(dtype):
    layer = layer_of(SHARED, dtype=dtype)
    wide = layer_of(SHARED, dtype=dtype)
    wide = LayerInput(0, wide.query.float(), wide.key.float(), wide.value.float(), wide.scaling, None, None)
    output = SegmentsOnCPU(SHARED).attend(layer)
    assert output.dtype is dtype
    assert torch.equal(output, SegmentsOnCPU(SHARED).attend(wide).to(dtype))


@pytest.mark.parametrize(("dtype", "width", "softcap"), [
    (torch.float64, 8, None), (torch.float32, 6, None), (torch.float32, 8, 30.0),
])  # fmt: skip
def test_what_does_not_fit_attends_row_by_row(dtype, width, softcap, monkeypatch):
    monkeypatch.setattr(attention_cpu._Attention, "apply", None)
    layer = layer_of(SHARED, width=width, dtype=dtype)
    layer = LayerInput(0, layer.query, layer.key, layer.value, 0.3, None, softcap)
    assert torch.equal(SegmentsOnCPU(SHARED).attend(layer), Segments(SHARED).attend(layer))


def test_it_is_chosen_and_named_where_numba_is_there(monkeypatch):
    assert plan_of(SHARED, CPU) == SegmentsOnCPU(SHARED)
    assert kernel_of_model(tiny_causal_lm(), autocast=False) is Kernel.LOOPS
    assert kernel_of_model(tiny_causal_lm().double(), autocast=False) is Kernel.ROWS
    monkeypatch.setattr(attention_choice, "loops_there", lambda: False)
    assert plan_of(SHARED, CPU) == Segments(SHARED)
    assert kernel_of_model(tiny_causal_lm(), autocast=False) is Kernel.ROWS
