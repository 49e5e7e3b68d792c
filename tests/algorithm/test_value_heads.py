"""Every value head by hand in float64: value, loss, gradient, and what it measures."""

from math import atan, erf, exp, log, pi, sqrt

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.algorithm.losses import value_loss
from nearstep.algorithm.several_outputs import EnsembleHead, QuantileHead
from nearstep.algorithm.value_heads import BCEHead, BoundedHead, HLGaussHead, LinearHead, ValueTargets

HEADS = (
    LinearHead(), BoundedHead(-1.0, 3.0), BCEHead(-1.0, 3.0), HLGaussHead(-1.0, 3.0, 5), QuantileHead(4, 0.5),
    EnsembleHead(3),
)  # fmt: skip


def floats(*values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def learned(targets, old=None, samples=None) -> ValueTargets:
    targets = floats(*targets)
    old = torch.zeros_like(targets) if old is None else floats(*old)
    numbers = torch.zeros(len(targets), dtype=torch.long) if samples is None else torch.tensor(samples)
    return ValueTargets(targets, old, numbers)


def loss_and_gradient(head, outputs, learned):
    outputs = outputs.clone().requires_grad_()
    loss = head.loss(outputs, learned)
    loss.sum().backward()
    return loss.detach().tolist(), outputs.grad.tolist()


def test_linear_is_the_clipped_squared_error():
    # V = 0.5, old 0, range 0.2: clipped 0.2. Against 1: (0.5 − 1)² = 0.25 < (0.2 − 1)² = 0.64, no gradient.
    # V = 0.1 lies in the range: ½·(0.1 − 1)², gradient 0.1 − 1.
    head, outputs, targets = LinearHead(0.2), floats([0.5], [0.1]), learned([1, 1])
    loss, gradient = loss_and_gradient(head, outputs, targets)
    assert loss == pytest.approx([0.32, 0.405])
    assert gradient == [[0], pytest.approx([-0.9])]
    assert head.values(outputs).tolist() == [0.5, 0.1]
    assert head.measures(outputs, targets)["clipfrac_avg"].tolist() == [1, 0]


def test_linear_gives_every_bit_of_the_value_loss():
    draws = torch.Generator().manual_seed(0)
    values, old, targets = (torch.randn(50, generator=draws) for _ in range(3))
    found = LinearHead(0.3).loss(values[:, None], ValueTargets(targets, old, torch.zeros(50).long()))
    assert torch.equal(found, value_loss(values, old, targets, cliprange=0.3))


def test_bounded():
    # tan(π/4) = 1: a quarter above the middle. dV/dz = 4 / π / (1 + z²).
    head, outputs = BoundedHead(-1.0, 3.0), floats([0], [1], [-2])
    values = [1, 2, -1 + 4 * (0.5 + atan(-2) / pi)]
    assert head.values(outputs).tolist() == pytest.approx(values)
    loss, gradient = loss_and_gradient(head, outputs, learned([3, 0, 0.5]))
    assert loss == pytest.approx([2, 2, (values[2] - 0.5) ** 2 / 2])
    slopes = [4 / pi, 4 / pi / 2, 4 / pi / 5]
    errors = [1 - 3, 2 - 0, values[2] - 0.5]
    assert gradient == [pytest.approx([error * slope]) for error, slope in zip(errors, slopes, strict=True)]


def test_bce():
    # y = (R + 1) / 4. z = log 3: σ = ¾, V = 2. The gradient of −y log σ − (1 − y) log(1 − σ) is σ − y.
    head, outputs = BCEHead(-1.0, 3.0), floats([0], [log(3)])
    assert head.values(outputs).tolist() == pytest.approx([1, 2])
    loss, gradient = loss_and_gradient(head, outputs, learned([0, 3]))
    assert loss == pytest.approx([log(2), -log(0.75)])
    assert gradient == [pytest.approx([0.5 - 0.25]), pytest.approx([0.75 - 1])]


@pytest.mark.parametrize("head", [BoundedHead(-1.0, 3.0), BCEHead(-1.0, 3.0), HLGaussHead(-1.0, 3.0, 5)])
def test_a_target_outside_the_range_counts_as_the_nearer_end_and_is_counted(head):
    outputs = torch.linspace(-1, 1, 4 * head.outputs).double().reshape(4, -1)
    outside, ends = learned([-1.5, 9, 3.0003, 3.01]), learned([-1, 3, 3, 3])
    assert loss_and_gradient(head, outputs, outside) == loss_and_gradient(head, outputs, ends)
    assert head.measures(outputs, outside)["target_out_of_range"].tolist() == [1, 1, 0, 1]  # 3.0003 is rounding


def test_hl_gauss_of_two_bins():
    # Bins [0, 1] and [1, 2] round 0.5 and 1.5, σ = ½. The target 0.75 has Φ at 0, 1 and 2 of −1.5, 0.5 and 2.5 σ.
    head = HLGaussHead(0.0, 2.0, bins=2, sigma=0.5)
    below = [(1 + erf(x / sqrt(2))) / 2 for x in (-1.5, 0.5, 2.5)]
    low = (below[1] - below[0]) / (below[2] - below[0])
    assert head.histogram(floats(0.75)).tolist() == [pytest.approx([low, 1 - low])]
    outputs = floats([0, log(3)])  # ¼ and ¾
    assert head.values(outputs).tolist() == pytest.approx([0.25 * 0.5 + 0.75 * 1.5])
    loss, gradient = loss_and_gradient(head, outputs, learned([0.75]))
    assert loss == pytest.approx([-low * log(0.25) - (1 - low) * log(0.75)])
    assert gradient == [pytest.approx([0.25 - low, 0.75 - (1 - low)])]
    entropy = head.measures(outputs, learned([0.75]))["value_entropy"].tolist()
    assert entropy == pytest.approx([-0.25 * log(0.25) - 0.75 * log(0.75)])


def test_the_histogram_adds_up_to_one_and_keeps_the_mean_inside_the_range():
    head = HLGaussHead(-2.0, 6.0, bins=40)
    shares = head.histogram(floats(-2, 0.3, 1.7, 6))
    centres = floats(*[-2 + 0.2 * (number + 0.5) for number in range(40)])
    assert shares.sum(-1).tolist() == pytest.approx([1] * 4)
    assert (shares[1:3] @ centres).tolist() == pytest.approx([0.3, 1.7], abs=1e-3)
    # Half of the Gaussian is cut off at an end: the mean is 0.8 σ inside, and σ is ¾ of a bin.
    assert (shares[0] @ centres).item() == pytest.approx(-2 + 0.8 * 0.15, abs=0.02)


def test_quantiles_by_hand():
    # τ = ¼ and ¾. Errors R − q: 2 and −1. Plain: ¼·2 and ¼·1, mean 3/8; gradients −τ and 1 − τ, halved.
    outputs, targets = floats([-1, 2]), learned([1])
    head = QuantileHead(2)
    assert head.values(outputs).tolist() == [0.5]
    assert loss_and_gradient(head, outputs, targets) == ([0.375], [[-0.125, 0.125]])
    # Huber up to 2: 2²/4 = 1 and 1²/4 = ¼, weighted alike; gradients −τ·2/2 and (1 − τ)·1/2, halved.
    assert loss_and_gradient(QuantileHead(2, 2.0), outputs, targets) == ([0.15625], [[-0.125, 0.0625]])
    # Huber up to 0.5: 2 − ¼ and 1 − ¼.
    assert loss_and_gradient(QuantileHead(2, 0.5), outputs, targets) == (
        [(0.25 * 1.75 + 0.25 * 0.75) / 2],
        [[-0.125, 0.125]],
    )
    assert head.measures(outputs, targets)["quantile_std"].tolist() == [1.5]


def test_a_member_learns_from_its_own_responses_alone():
    # Response 0 and 2 teach member 0, response 1 member 1.
    head, outputs = EnsembleHead(2), floats([1, 5], [1, 5], [2, 4])
    loss, gradient = loss_and_gradient(head, outputs, learned([0, 2, 5], samples=[0, 1, 2]))
    assert loss == [0.5, 4.5, 4.5]
    assert gradient == [[1, 0], [0, 3], [-3, 0]]
    assert head.values(outputs).tolist() == [3, 3, 3]
    assert head.measures(outputs, learned([0, 0, 0]))["ensemble_std"].tolist() == [2, 2, 1]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_gradients_against_finite_differences(head):
    outputs = torch.randn(6, head.outputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = ValueTargets(torch.linspace(-0.9, 2.9, 6).double(), torch.full((6,), 0.5).double(), torch.arange(6))
    assert torch.autograd.gradcheck(lambda o: head.loss(o, targets), outputs.requires_grad_())
    assert torch.autograd.gradcheck(head.values, outputs)


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_zeros_are_the_middle_and_everything_is_float32_at_least(head):
    middle = 0.0 if head.value_range is None else 1.0
    nothing = torch.zeros(2, head.outputs, dtype=torch.bfloat16)
    assert head.values(nothing).tolist() == pytest.approx([middle] * 2)
    assert head.values(nothing).dtype == torch.float32
    assert head.loss(nothing, ValueTargets(torch.ones(2), torch.ones(2), torch.arange(2))).dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=5, max_size=5), st.floats(-1, 3))
def test_hl_gauss_is_least_where_the_softmax_is_the_histogram(logits, target):
    head = HLGaussHead(-1.0, 3.0, 5)
    histogram = head.histogram(floats(target)).clamp(min=1e-300)
    least = head.loss(histogram.log(), learned([target]))
    assert head.loss(floats(logits), learned([target])) >= least - 1e-9


def test_a_saturated_bce_has_a_finite_loss_and_no_small_gradient():
    loss, gradient = loss_and_gradient(BCEHead(0.0, 1.0), floats([400], [-400]), learned([0, 1]))
    assert loss == [400, 400]
    assert gradient == [[1], [-1]]
    assert exp(-400) > 0  # in float64; a float32 sigmoid is 1 there
