"""Divergences and their masks: golden values, lower bounds, equivalences, finite at the edges in every type."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.divergences import binary_kl, binary_tv, log_one_minus_exp, topk_kl, topk_tv
from nearstep.algorithm.trust_regions import BinaryKL, BinaryTV, TokenLogprobs, TopKKL, TopKTV, Unbounded
from tests.regions import weight


def log(*probabilities, dtype=torch.float64):
    return torch.tensor(probabilities, dtype=dtype).log()


GOLDEN = [
    (0.5, 0.6, 0.1, 0.020411),
    (0.5, 0.35, 0.15, 0.047155),
    (0.2, 0.35, 0.15, 0.054188),
    (0.2, 0.36, 0.16, 0.060958),
    (0.9, 0.99, 0.09, 0.144479),
    (0.0001, 0.01, 0.0099, 0.009489),
    (0.99, 0.80, 0.19, 0.181005),
]


@pytest.mark.parametrize(("q", "p", "tv", "kl"), GOLDEN)
def test_binary_golden_10_6(q, p, tv, kl):
    assert binary_tv(log(p), log(q)).item() == pytest.approx(tv, abs=1e-9)
    assert binary_kl(log(p), log(q)).item() == pytest.approx(kl, abs=1e-6)


MU, PI = [0.5, 0.2, 0.15, 0.1, 0.05], [0.3, 0.3, 0.1, 0.2, 0.1]


@pytest.mark.parametrize(
    ("chosen", "tv", "kl"),
    [
        ([0, 1], 0.2, 0.088015),
        ([0, 3], 0.2, 0.096841),
        ([0, 4], 0.2, 0.091299),
        ([3], 0.1, 0.036690),
        ([0, 1, 2, 3, 4], 0.25, 0.131167),
    ],
)
def test_topk_golden_10_6(chosen, tv, kl):
    p, q = log(*[PI[i] for i in chosen])[None], log(*[MU[i] for i in chosen])[None]
    assert topk_tv(p, q).item() == pytest.approx(tv, abs=1e-9)
    assert topk_kl(p, q).item() == pytest.approx(kl, abs=1e-6)


def kept(region, q, p, advantage):
    advantages = torch.tensor([advantage], dtype=torch.float64)
    return weight(region, TokenLogprobs(log(p)), TokenLogprobs(log(q)), advantages).item()


def test_masks_10_6():
    tv, kl = BinaryTV(0.15, 0.15), BinaryKL(0.05, 0.05)
    assert not kept(tv, 0.2, 0.36, 1.0)
    assert kept(tv, 0.5, 0.6, 1.0)
    assert kept(tv, 0.5, 0.6, -1.0)  # moving up against a negative advantage: back home
    assert not kept(tv, 0.99, 0.80, -1.0)
    assert kept(tv, 0.99, 0.80, 1.0)
    assert not kept(kl, 0.9, 0.99, 1.0)
    assert kept(tv, 0.9, 0.99, 1.0)


def test_thresholds_low_and_high_are_apart_and_strict():
    exact = BinaryTV(low=0.5, high=0.25)
    assert kept(exact, 0.25, 0.5, 1.0)  # exactly at the threshold
    assert not kept(BinaryTV(low=0.5, high=0.2), 0.25, 0.5, 1.0)
    assert kept(exact, 0.75, 0.375, -1.0)
    assert not kept(BinaryTV(low=0.3, high=9.0), 0.75, 0.375, -1.0)


def test_a_zero_advantage_takes_the_branch_of_negative_ones():
    assert not kept(BinaryTV(0.1, 9.0), 0.9, 0.5, 0.0)
    assert kept(BinaryTV(9.0, 0.1), 0.5, 0.9, 0.0)


def test_no_region_keeps_everything():
    assert kept(Unbounded(), 0.0001, 0.99, 1.0)


distributions = st.lists(st.floats(1e-4, 1), min_size=3, max_size=9)


@given(distributions, st.data())
def test_binary_is_below_topk_is_below_full_5_2(weights, data):
    others = data.draw(st.lists(st.floats(1e-4, 1), min_size=len(weights), max_size=len(weights)))
    q = torch.tensor(weights, dtype=torch.float64) / sum(weights)
    p = torch.tensor(others, dtype=torch.float64) / sum(others)
    chosen = data.draw(st.lists(st.integers(0, len(weights) - 1), min_size=1, unique=True))
    sampled = chosen[0]
    for binary, topk, full in (
        (binary_tv, topk_tv, (p - q).abs().sum() / 2),
        (binary_kl, topk_kl, (q * (q / p).log()).sum()),
    ):
        low = binary(p[[sampled]].log(), q[[sampled]].log())
        middle = topk(p[chosen].log()[None], q[chosen].log()[None])
        assert low <= middle + 1e-9
        assert middle <= full + 1e-9
        torch.testing.assert_close(topk(p[[sampled]].log()[None], q[[sampled]].log()[None]), low, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(topk(p.log()[None], q.log()[None])[0], full, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_finite_at_every_edge_in_every_type_d29(dtype):
    edges = torch.tensor([-math.inf, -200.0, -1e-30, 0.0, -0.7], dtype=dtype)
    now, old = (column.flatten() for column in torch.meshgrid(edges, edges, indexing="ij"))
    for found in (
        binary_tv(now, old),
        binary_kl(now, old),
        topk_tv(now[:, None], old[:, None]),
        topk_kl(now[:, None], old[:, None]),
    ):
        assert found.isfinite().all()
        assert (found >= 0).all()
        assert found[now == old].abs().max() < 1e-6


@given(st.floats(-60, -1e-9))
def test_log_one_minus_exp_is_exact(log_probability):
    found = log_one_minus_exp(torch.tensor([log_probability], dtype=torch.float64)).item()
    assert found == pytest.approx(max(math.log(-math.expm1(log_probability)), math.log(1e-12)), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("region", "divergence"), [(TopKTV(0.1, 0.1), topk_tv), (TopKKL(0.02, 0.02), topk_kl)])
def test_topk_regions_look_at_the_recorded_tokens(region, divergence):
    """The sampled token has hardly moved; the others have, which binary forms cannot see."""
    q, p = log(0.5, 0.4, 0.05)[None], log(0.51, 0.1, 0.3)[None]
    now, old = TokenLogprobs(p[:, 0], p), TokenLogprobs(q[:, 0], q)
    assert divergence(p, q).item() > region.high
    assert weight(region, now, old, torch.ones(1, dtype=torch.float64)).item() == 0
    assert weight(BinaryTV(0.1, 0.1), now, old, torch.ones(1, dtype=torch.float64)).item() == 1
