"""The weights of soft and row regions, worked out by hand in float64."""

import math

import pytest
import torch

from nearstep.algorithm.divergences import topk_kl, topk_tv
from nearstep.algorithm.row_regions import CPPO, SAT, TRM, VACO
from nearstep.algorithm.soft_regions import CISPO, DIS, DRPO, SAPO, SPO
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs, TopKKL, TopKTV


def weights(region, now, old, advantages, counts=None):
    """By probabilities; without `counts` every token is a row."""
    now, old = (TokenLogprobs(torch.tensor(policy, dtype=torch.float64).log()) for policy in (now, old))
    counts = torch.tensor([1] * len(advantages) if counts is None else counts)
    rows = ActionRows(counts, torch.zeros_like(counts))
    return region.weight(now, old, torch.tensor(advantages, dtype=torch.float64), rows).tolist()


def bell(tau, ratio):
    return 1 / math.cosh(tau * (ratio - 1) / 2) ** 2  # = 4σ(1 − σ)


@pytest.mark.parametrize(
    ("region", "expected"),
    [  # π = 0.6 and 0.4 after μ = 0.5: r = 1.2 and 0.8, each with A = 2 and −3
        (SPO(0.2), [0, 2, 2, 0]),
        (SPO(0.1), [-1, 3, 3, -1]),
        (DRPO(0.5), [0.8, 1.2, 1.2, 0.8]),
        (DRPO(), [0.992, 1.008, 1.008, 0.992]),
        (SAPO(), [bell(1, 1.2), bell(1.05, 1.2), bell(1, 0.8), bell(1.05, 0.8)]),
        (SAPO(4.0, 2.0), [bell(4, 1.2), bell(2, 1.2), bell(4, 0.8), bell(2, 0.8)]),
        (DIS(0.9, 1.3), [1, 1, 0, 0]),
        (DIS(), [1, 1, 1, 1]),
        (CISPO(0.9, 1.1), [1.1 / 1.2, 1.1 / 1.2, 0.9 / 0.8, 0.9 / 0.8]),
        (CISPO(), [1, 1, 1, 1]),
    ],
    ids=repr,
)
def test_soft_regions(region, expected):
    found = weights(region, [0.6, 0.6, 0.4, 0.4], [0.5] * 4, [2, -3, 2, -3])
    assert found == pytest.approx(expected, abs=1e-12)


def test_cppo_spends_a_budget_along_the_row():
    """D = .10, .12, .05 and u = 1, .9, .8; the 0.9 quantile .116 is clamped to b = .04.

    Left before each token: .15, .15 + (.04 − .10) = .09, .09 + .9(.04 − .12) = .018; used: .10, .108, .04.
    The second row begins with a budget of its own.
    """
    moved = ([0.60, 0.62, 0.55, 0.60], [0.5] * 4)
    assert weights(CPPO(), *moved, [1, 1, 1, 1], [3, 1]) == [1, 0, 0, 1]
    assert weights(CPPO(), *moved, [-1, -1, -1, -1], [3, 1]) == [1, 1, 1, 1]
    assert weights(CPPO(threshold=0.25), *moved, [1, 1, 1, 1], [3, 1]) == [1, 1, 1, 1]
    assert weights(CPPO(threshold=0.17, floor=0.0), *moved, [1, 1, 1, 1], [3, 1]) == [1, 1, 1, 1]  # u = 1, .5, 0
    assert weights(CPPO(), [0.66, 0.5], [0.5, 0.5], [1, 1], [1, 1]) == [0, 1]  # .16 > .15, whatever is left


def test_cppo_saves_what_quiet_tokens_leave():
    """D = .01, .01, .2: what is left never exceeds the threshold, so the third goes; b is at least .02."""
    assert weights(CPPO(), [0.51, 0.51, 0.7], [0.5] * 3, [1, 1, 1], [3]) == [1, 1, 0]


def test_trm_drops_the_row_of_one_token_too_far():
    assert weights(TRM(0.15), [0.6, 0.7, 0.6], [0.5] * 3, [1, -1, 1], [2, 1]) == [0, 0, 1]


def test_vaco_drops_what_moves_out_in_a_row_too_far():
    """Mean |r − 1| of .1 and .5 is .3; of .1 alone it is .1."""
    moved = ([0.55, 0.75, 0.25, 0.55], [0.5] * 4)
    assert weights(VACO(0.2), *moved, [1, -1, -1, 1], [3, 1]) == [0, 1, 0, 1]
    assert weights(VACO(0.4), *moved, [1, -1, -1, 1], [3, 1]) == [1, 1, 1, 1]


def test_sat_narrows_the_band_of_the_tokens_that_moved_most():
    """r = 1.15 is beyond 1 ± .1, and within 1 ± .2 where another token of its row moved more."""
    row = [0.5] * 9 + [0.575]
    assert weights(SAT(), row, [0.5] * 10, [1] * 10, [10]) == [1] * 9 + [0]
    assert weights(SAT(), row, [0.5] * 10, [-1] * 10, [10]) == [1] * 10
    assert weights(SAT(), [*row, 0.35], [0.5] * 11, [1] * 11, [11]) == [1] * 11
    assert weights(SAT(), [*row, 0.35], [0.5] * 11, [1] * 9 + [1, -1], [11]) == [1] * 10 + [0]
    assert weights(SAT(contraction=1.0), row, [0.5] * 10, [1] * 10, [10]) == [1] * 10


def over_top(region, now, old, sampled, advantages):
    """The same from probabilities of two top tokens, and of the sampled token before and after."""
    policies = [
        TokenLogprobs(
            torch.tensor([pair[number] for pair in sampled], dtype=torch.float64).log(),
            torch.tensor([top] * len(sampled), dtype=torch.float64).log(),
        )
        for number, top in enumerate((now, old))
    ]
    counts = torch.ones(len(sampled), dtype=torch.long)
    rows = ActionRows(counts, torch.zeros_like(counts))
    return region.weight(*policies, torch.tensor(advantages, dtype=torch.float64), rows).tolist()


OLD, NOW = [0.5, 0.3], [0.35, 0.3]  # what is left is .2, and now .35
TV = (0.15 + 0 + 0.15) / 2
KL = 0.5 * math.log(0.5 / 0.35) + 0.2 * math.log(0.2 / 0.35)  # .0664; the other way round it is .0710
MOVES = [(0.35, 0.5), (0.35, 0.5), (0.2, 0.1), (0.2, 0.1)]  # the first top token, and one of those that are left


def test_divergences_over_top_tokens():
    now, old = (torch.tensor([top], dtype=torch.float64).log() for top in (NOW, OLD))
    assert topk_tv(now, old).item() == pytest.approx(TV, abs=1e-12)
    assert topk_kl(now, old).item() == pytest.approx(KL, abs=1e-12)
    assert pytest.approx(0.0664143126) == KL
    # Of one token they are the binary ones.
    assert topk_tv(now[:, :1], old[:, :1]).item() == pytest.approx(0.15, abs=1e-12)
    one = 0.5 * math.log(0.5 / 0.35) + 0.5 * math.log(0.5 / 0.65)
    assert topk_kl(now[:, :1], old[:, :1]).item() == pytest.approx(one, abs=1e-12)
    # Where nothing is left of a mass of .2 it counts as 1e-12.
    gone = torch.tensor([[0.7, 0.3]], dtype=torch.float64).log()
    by_hand = 0.5 * math.log(0.5 / 0.7) + 0.2 * (math.log(0.2) - math.log(1e-12))
    assert topk_kl(gone, old).item() == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize(
    ("region", "expected"),
    [  # advantages −1, +1, +1, −1: away, back, away, back
        (TopKTV(0.14, 0.14, 2), [0, 1, 0, 1]),
        (TopKTV(0.16, 0.14, 2), [1, 1, 0, 1]),
        (TopKTV(0.14, 0.16, 2), [0, 1, 1, 1]),
        (TopKKL(0.066, 0.066, 2), [0, 1, 0, 1]),
        (TopKKL(0.068, 0.066, 2), [1, 1, 0, 1]),
        (TopKKL(0.066, 0.068, 2), [0, 1, 1, 1]),
    ],
    ids=repr,
)
def test_regions_over_top_tokens(region, expected):
    assert over_top(region, NOW, OLD, MOVES, [-1, 1, 1, -1]) == expected
