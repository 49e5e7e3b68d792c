"""How segments attend on a GPU: which kernel is chosen, and that each is told the same borders as the plain way."""

import dataclasses

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from nearstep.models.attention.choice import plan_of
from nearstep.models.attention.interface import LayerInput, Segment, Segments, attend_causally
from nearstep.models.attention.varlen import (
    Kernel,
    SegmentsOnGPU,
    attend_flex,
    attend_varlen,
    block_mask,
    borders_of,
    kernel_for,
    kernels_there,
    mask_rule,
)

CPU = torch.device("cpu")
SHARED = (Segment(5), Segment(4), Segment(3, prefix=1), Segment(1, prefix=1), Segment(6), Segment(2, prefix=4))
ROWS = (Segment(5), Segment(1), Segment(7))
EVERY = frozenset(Kernel)


def layer_input(segments, *, window=None, softcap=None, heads=4, kv_heads=2, width=16, dtype=torch.float64, device=CPU):
    draws = torch.Generator().manual_seed(0)
    tokens = sum(segment.length for segment in segments)

    def states(count):
        return (
            torch.randn(1, count, tokens, width, generator=draws, dtype=torch.float64)
            .to(device, dtype)
            .requires_grad_()
        )

    return LayerInput(states(heads), states(kv_heads), states(kv_heads), 0.3, window, softcap)


@pytest.mark.parametrize(("dtype", "sizes", "softcap", "there", "expected"), [
    (torch.bfloat16, (64, 64), None, EVERY, Kernel.VARLEN),
    (torch.float16, (256, 256), None, EVERY, Kernel.VARLEN),
    (torch.bfloat16, (64, 64), 50.0, EVERY, Kernel.FLASH),
    (torch.bfloat16, (64, 64), None, EVERY - {Kernel.VARLEN}, Kernel.FLASH),
    (torch.bfloat16, (64, 64), 50.0, EVERY - {Kernel.FLASH}, Kernel.FLEX),
    (torch.bfloat16, (320, 320), None, EVERY, Kernel.FLEX),
    (torch.bfloat16, (64, 32), None, EVERY, Kernel.FLEX),
    (torch.float32, (64, 64), None, EVERY, Kernel.FLEX),
    (torch.float32, (64, 64), None, frozenset({Kernel.VARLEN, Kernel.FLASH, Kernel.ROWS}), Kernel.ROWS),
    (torch.bfloat16, (64, 64), None, frozenset({Kernel.ROWS}), Kernel.ROWS),
])  # fmt: skip
def test_the_first_kernel_that_fits_is_taken(dtype, sizes, softcap, there, expected):
    assert kernel_for(there, dtype, width=sizes[0], value_width=sizes[1], softcap=softcap) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU more is there")
def test_without_a_gpu_no_kernel_of_one_is_there():
    assert kernels_there() == {Kernel.ROWS}


def test_borders_by_hand():
    borders = borders_of((Segment(2), Segment(3), Segment(1, prefix=0)), CPU)
    assert borders.query_ends.tolist() == [0, 2, 5, 6]
    assert borders.key_ends.tolist() == [0, 2, 5, 8]
    assert borders.keys.tolist() == [0, 1, 2, 3, 4, 0, 1, 5]
    assert (borders.longest_query, borders.longest_key) == (3, 3)
    assert borders_of(ROWS, CPU).keys is None


def varlen_by_hand(query, key, value, borders, layer):
    """What variable-length kernels do: causality and windows count from the last query and the last key."""
    outputs = []
    for number in range(len(borders.query_ends) - 1):
        queries = slice(*borders.query_ends[number : number + 2].tolist())
        keys = slice(*borders.key_ends[number : number + 2].tolist())
        q, k, v = (states.transpose(0, 1)[None] for states in (query[queries], key[keys], value[keys]))
        outputs.append(attend_causally(q, k, v, layer)[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("segments", [SHARED, ROWS])
@pytest.mark.parametrize("window", [None, 3])
def test_varlen_kernels_get_the_same_rows(segments, window):
    ours, plain = layer_input(segments, window=window), layer_input(segments, window=window)
    found = attend_varlen(ours, borders_of(segments, CPU), varlen_by_hand)
    expected = Segments(segments).attend(plain)
    torch.testing.assert_close(found, expected)
    weights = torch.arange(found.numel(), dtype=torch.float64).cos().view_as(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in ((ours.query, plain.query), (ours.key, plain.key), (ours.value, plain.value)):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("segments", [SHARED, ROWS])
@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("heads", [4, 6])
def test_flex_attention_gets_the_same_rows(segments, window, softcap, heads):
    layer = layer_input(segments, window=window, softcap=softcap, heads=heads)
    states = {name: getattr(layer, name).detach() for name in ("query", "key", "value")}
    layer = dataclasses.replace(layer, **states)  # on a CPU it has no backward pass
    found = attend_flex(layer, block_mask(segments, window, CPU), flex_attention)
    torch.testing.assert_close(found, Segments(segments).attend(layer))


def test_masks_by_hand():
    rule = mask_rule((Segment(2), Segment(2, prefix=0), Segment(1)), 3, CPU)
    places = torch.arange(5)
    none = torch.tensor(0)
    assert rule(none, none, places[:, None], places).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0],  # three tokens, the first of the prompt is out of sight
        [0, 0, 0, 0, 1],
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="kernels for a GPU need one")
@pytest.mark.parametrize("segments", [SHARED, ROWS, tuple(Segment(n) for n in (130, 257, 64))])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("softcap", "dtype"), [(None, torch.bfloat16), (20.0, torch.bfloat16), (None, torch.float32)])
def test_kernels_on_a_gpu_give_what_rows_give(segments, window, softcap, dtype):
    device = torch.device("cuda")
    ours = layer_input(segments, window=window, softcap=softcap, width=64, dtype=dtype, device=device)
    exact = layer_input(segments, window=window, softcap=softcap, width=64)
    plan = plan_of(segments, device)
    assert isinstance(plan, SegmentsOnGPU)
    found, expected = plan.attend(ours), Segments(segments).attend(exact)
    found.double().cos().sum().backward()
    expected.cos().sum().backward()
    tolerance = {"atol": 3e-2, "rtol": 3e-2} if dtype == torch.bfloat16 else {"atol": 1e-3, "rtol": 1e-3}
    torch.testing.assert_close(found.cpu().double(), expected, **tolerance)
    for one, other in ((ours.query, exact.query), (ours.key, exact.key), (ours.value, exact.value)):
        torch.testing.assert_close(one.grad.cpu().double(), other.grad, **tolerance)
