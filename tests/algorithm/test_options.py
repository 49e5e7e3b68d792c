"""Options beyond plain PPO, as formulas: golden values of schedules and shaping, moments, one ratio for a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.advantages import gae, group_advantages, length_adaptive_lam
from nearstep.algorithm.kl import adapted_kl_coef
from nearstep.algorithm.losses import absolute_surrogate, policy_loss, sequence_anchor
from nearstep.algorithm.shaping import soft_overlong_penalty
from nearstep.algorithm.statistics import Moments, alone, whiten
from nearstep.algorithm.trust_regions import Clip, TokenLogprobs
from tests.regions import weight


@pytest.mark.parametrize(("length", "lam"), [(20, 0), (25, 0.2), (100, 0.8), (1000, 0.98), (16384, 0.998779), (0, 0)])
def test_length_adaptive_lambda_10_7(length, lam):
    assert float(length_adaptive_lam(torch.tensor([length]), 0.05)) == pytest.approx(lam, abs=1e-6)


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0), (16384, 0), (16385, -0.000244), (18432, -0.5), (20480, -1), (20481, -1)]
)
def test_soft_overlong_penalty_10_7(length, penalty):
    found = soft_overlong_penalty(torch.tensor([length]), longest=20480, buffer=4096)
    assert float(found) == pytest.approx(penalty, abs=1e-6)


@pytest.mark.parametrize(
    ("kl", "expected"), [(6, 0.2), (7.5, 0.201024), (60, 0.201024), (4.8, 0.198976), (3, 0.198976)]
)
def test_adaptive_kl_10_7(kl, expected):
    found = adapted_kl_coef(0.2, float(kl), target=6.0, horizon=10000, episodes=256)
    assert found == pytest.approx(expected, abs=1e-6)


def test_every_row_may_have_a_lambda_of_its_own():
    counts, rewards, values = torch.tensor([2, 2]), torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.5, 0.25, 0.5, 0.25])
    zeros = torch.zeros(2)

    def walk(lam):
        return gae(rewards, values, counts, final_values=zeros, final_advantages=zeros, gamma=1.0, lam=lam)

    mixed = walk(torch.tensor([0.0, 1.0]))
    assert mixed.tolist() == [*walk(0.0)[:2].tolist(), *walk(1.0)[2:].tolist()]
    assert mixed.tolist() == [-0.25, 0.75, 0.5, 0.75]  # δ alone, and the return less the value


@given(st.lists(st.lists(st.floats(-100, 100), max_size=5), min_size=1, max_size=4))
def test_moments_in_parts_are_those_of_the_whole(parts):
    merged = sum((Moments.of(torch.tensor(part, dtype=torch.float64), alone) for part in parts), start=Moments())
    whole = torch.tensor([value for part in parts for value in part], dtype=torch.float64)
    assert merged.count == len(whole)
    if len(whole):
        assert merged.mean == pytest.approx(float(whole.mean()), abs=1e-9)
        assert merged.squares == pytest.approx(float((whole - whole.mean()).square().sum()), abs=1e-6)


def test_normalised_scores_by_hand():
    moments = Moments.of(torch.tensor([1.0, 3.0]), alone)  # mean 2, standard deviation 1
    moments = moments + Moments.of(torch.tensor([2.0, 10.0, -6.0]), alone)  # mean 2, squares 2 + 128
    assert moments.normalize(torch.tensor([7.0]), shift=True).item() == pytest.approx(5 / 26**0.5)
    assert moments.normalize(torch.tensor([7.0]), shift=False).item() == pytest.approx(7 / 26**0.5)


def test_scores_that_do_not_vary_are_not_magnified():
    assert Moments.of(torch.tensor([1.0, 1.0]), alone).normalize(torch.tensor([1.0]), shift=False).tolist() == [1]
    assert Moments().normalize(torch.tensor([1.0]), shift=True).tolist() == [1]


def test_whitening_leaves_out_what_does_not_count():
    values, counted = torch.tensor([1.0, 1e6, 2, 4]), torch.tensor([True, False, True, True])
    assert whiten(values, counted=counted).tolist() == pytest.approx([-0.872872, 0, -0.218218, 1.091089], abs=1e-5)
    scaled = whiten(values, shift_mean=False, counted=counted)
    assert scaled.tolist() == pytest.approx([1.460462, 0, 2.115115, 3.424423], abs=1e-5)


@pytest.mark.parametrize("rule", ["group_mean", "group_normalized", "leave_one_out"])
def test_a_group_is_what_was_scored_of_it(rule):
    totals = torch.tensor([1.0, 99, 3, 5, 7, 99, 99, 99])
    scored = torch.tensor([True, False, True, True, True, False, False, False])
    found = group_advantages(totals, 4, rule, scored)
    assert found[[0, 2, 3]].tolist() == pytest.approx(group_advantages(torch.tensor([1.0, 3, 5]), 3, rule).tolist())
    assert found[[1, 4, 5, 6, 7]].tolist() == [0] * 5


COUNTS = torch.tensor([2, 3])


def test_one_ratio_for_a_row_is_the_geometric_mean_of_its_tokens():
    now = torch.tensor([-1.0, -2, -3, -1, -2])
    old = torch.tensor([-1.5, -2.5, -3, -2, -1])
    gaps = (now - sequence_anchor(now, old, COUNTS)).tolist()
    assert gaps == pytest.approx([0.5, 0.5, 0, 0, 0], abs=1e-6)


def test_the_gradient_of_a_sequence_ratio_is_that_of_gspo():
    torch.manual_seed(0)
    old = -torch.rand(5, dtype=torch.float64)
    now = (old + 0.3 * torch.randn(5, dtype=torch.float64)).requires_grad_()
    advantages = torch.tensor([1.0, 1, -2, -2, -2], dtype=torch.float64)
    anchor = sequence_anchor(now.detach(), old, COUNTS)
    mask = weight(Clip(0.05, 0.05), TokenLogprobs(now.detach()), TokenLogprobs(anchor), advantages)
    ours = (policy_loss(now, anchor, advantages, mask) / torch.tensor([2, 2, 3, 3, 3])).sum()
    found = torch.autograd.grad(ours, now)[0]

    rows = now.split([2, 3]), old.split([2, 3]), (1.0, -2.0)
    gspo = now.new_zeros(())
    for new, before, advantage in zip(*rows, strict=True):
        ratio = (new - before).mean().exp()
        gspo = gspo - torch.minimum(ratio * advantage, ratio.clamp(0.95, 1.05) * advantage)
    expected = torch.autograd.grad(gspo, now)[0]
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


@pytest.mark.parametrize(
    ("advantage", "ratio", "expected"), [(1, 1.5, 1.5), (1, 0.5, 0.8), (-1, 1.5, 1.5), (-2, 0.9, 1.8)]
)
def test_absolute_surrogate_is_the_larger_of_both(advantage, ratio, expected):
    found = absolute_surrogate(torch.tensor([ratio]), torch.tensor([float(advantage)]), low=0.2, high=0.2)
    assert found.item() == pytest.approx(expected)
