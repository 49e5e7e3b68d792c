"""Logits read by loops compiled for this CPU: the numbers and gradients of torch's operations in float64."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nearstep.models import logits_cpu
from nearstep.models.distribution import Sampling
from nearstep.models.forward import action_logprobs as asking
from nearstep.models.forward.action_logprobs import action_logprobs
from nearstep.models.forward.head import Head
from nearstep.models.forward.logits import Answers, InBlocks, OfAnswers
from nearstep.models.logits_cpu import InLoops

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")

CPU = torch.device("cpu")


def case(lines, vocabulary, ids, *, spread=3.0, seed=0):
    """Logits, what is asked of them, and gradients of the answers."""
    draws = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(lines, vocabulary, generator=draws)
    asked = torch.rand(lines, vocabulary, generator=draws).topk(ids).indices
    weights = torch.randn(lines, ids, generator=draws), torch.randn(lines, generator=draws)
    return logits, asked, OfAnswers(*weights)


def in_float64(logits, asked, gradients, *, factor):
    """The answers and the gradient of the logits, by torch alone."""
    logits = logits.double().requires_grad_()
    logprobs = (logits * factor).log_softmax(-1)
    entropy = -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0)).sum(-1)
    answers = Answers(logprobs.gather(1, asked), entropy)
    loss = (answers.logprobs * gradients.logprobs).sum()
    if gradients.entropy is not None:
        loss = loss + (answers.entropy * gradients.entropy).sum()
    return answers, torch.autograd.grad(loss, logits)[0]


def assert_as_in_float64(logits, asked, gradients, *, factor=1.0, tolerance=4e-6):
    reader, places = InLoops(asked, factor), slice(0, len(logits))
    expected, gradient = in_float64(logits, asked, gradients, factor=factor)
    ours, before = logits.clone(), logits.clone()
    answers = reader.read(ours, places)
    assert torch.equal(ours, before)
    torch.testing.assert_close(answers.logprobs.double(), expected.logprobs, rtol=1e-6, atol=tolerance)
    torch.testing.assert_close(answers.entropy.double(), expected.entropy, rtol=1e-6, atol=tolerance)
    reader.differentiate(ours, places, answers, gradients)
    scale = factor * float(gradients.logprobs.abs().max())  # of 1 − p, which may be nearly 0
    if gradients.entropy is not None:  # p · (log p + entropy)
        scale += factor * float(gradients.entropy.abs().max() * (1 + expected.entropy.max()))
    torch.testing.assert_close(ours.double(), gradient, rtol=1e-5, atol=tolerance * scale)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(2, 1100), st.booleans(), st.sampled_from([0.5, 1.0, 1 / 0.7, 4.0]), st.data())
def test_numbers_and_gradients_are_those_of_float64(lines, vocabulary, trains_entropy, factor, data):
    ids = data.draw(st.integers(1, min(4, vocabulary)))
    logits, asked, gradients = case(lines, vocabulary, ids, seed=vocabulary)
    if not trains_entropy:
        gradients = OfAnswers(gradients.logprobs, None)
    assert_as_in_float64(logits, asked, gradients, factor=factor)


def test_by_hand():
    """Odds 1 : 1 : 2 of three tokens: probabilities 1/4, 1/4, 1/2, entropy 3/2 · log 2."""
    logits, asked = torch.tensor([[0.0, 0.0, math.log(2)]]), torch.tensor([[2, 0]])
    reader = InLoops(asked, 1.0)
    answers = reader.read(logits, slice(0, 1))
    torch.testing.assert_close(answers.logprobs, torch.tensor([[-math.log(2), -2 * math.log(2)]]))
    torch.testing.assert_close(answers.entropy, torch.tensor([1.5 * math.log(2)]))
    reader.differentiate(logits, slice(0, 1), answers, OfAnswers(torch.tensor([[3.0, 0.0]]), None))
    torch.testing.assert_close(logits, torch.tensor([[-0.75, -0.75, 1.5]]))


def test_large_logits_neither_overflow_nor_vanish():
    logits, asked, gradients = case(5, 700, 2, spread=200.0)
    logits[1] += 3000
    logits[2] -= 3000
    assert_as_in_float64(logits, asked, gradients, tolerance=1e-3)  # float32 numbers near 3,000 are 2e-4 apart


def test_impossible_tokens_have_no_part():
    logits, asked, gradients = case(4, 600, 2)
    logits[:, 5], logits[2, 300:] = -torch.inf, -torch.inf
    asked = torch.tensor([[7, 8], [9, 10], [11, 12], [13, 14]])
    assert_as_in_float64(logits, asked, gradients)
    answers = InLoops(torch.tensor([[7, 5]] * 4), 1.0).read(logits, slice(0, 4))
    assert (answers.logprobs[:, 1] == -torch.inf).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_broken_logit_is_seen_in_its_line_only(bad):
    logits, asked, gradients = case(3, 600, 1)
    logits[1, 599] = bad
    reader, places = InLoops(asked, 1.0), slice(0, 3)
    answers = reader.read(logits, places)
    assert answers.logprobs.isfinite().all(1).tolist() == [True, False, True]
    assert answers.entropy.isfinite().tolist() == [True, False, True]
    reader.differentiate(logits, places, answers, gradients)
    assert logits.isfinite().all(1).tolist() == [True, False, True]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(threads):
    logits, asked, gradients = case(50, 4000, 3)
    reader, places = InLoops(asked, 1.3), slice(0, 50)
    before = torch.get_num_threads()

    def run(count):
        torch.set_num_threads(count)
        mine = logits.clone()
        answers = reader.read(mine, places)
        reader.differentiate(mine, places, answers, gradients)
        return answers.logprobs, answers.entropy, mine

    try:
        alone, together = run(1), run(threads)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(("shape", "sampling", "k", "entropy_gradient"), [
    ({}, Sampling(), 0, False), ({}, Sampling(0.7), 3, True), ({"scale": 0.3}, Sampling(1.3), 2, True),
])  # fmt: skip
def test_a_head_read_in_loops_or_in_blocks_is_the_same(shape, sampling, k, entropy_gradient, monkeypatch):
    """Log-probs, entropy and the gradients of states and weights, over two chunks."""
    monkeypatch.setattr(asking, "LOGITS_HELD", {"cpu": 16 * 500})
    draws = torch.Generator().manual_seed(0)
    states, weights = torch.randn(21, 8, generator=draws), torch.randn(21, generator=draws)
    actions = torch.randint(0, 500, (21,), generator=draws)
    top_ids = torch.rand(21, 500, generator=draws).topk(k).indices if k else None
    linear = nn.Linear(8, 500)

    def run():
        hidden, linear.weight.grad, linear.bias.grad = states.clone().requires_grad_(), None, None
        found = action_logprobs(
            Head(linear, **shape), hidden, actions, sampling, top_ids, entropy_gradient=entropy_gradient
        )
        loss = (weights * found.sampled).sum() + (0 if found.top is None else (weights * found.top.sum(1)).sum())
        (loss + (weights.cos() * found.entropy).sum() if entropy_gradient else loss).backward()
        return found.sampled, found.entropy, found.top, hidden.grad, linear.weight.grad, linear.bias.grad

    assert InLoops.fits(Head(linear, **shape), sampling, torch.float32, CPU)
    ours = run()
    monkeypatch.setattr(logits_cpu, "loops_there", lambda: False)
    theirs = run()
    assert not all(torch.equal(one, other) for one, other in zip(ours[3:], theirs[3:], strict=True))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("shape", "sampling", "dtype"), [
    ({"softcap": 30.0}, Sampling(), torch.float32), ({}, Sampling(top_k=5), torch.float32),
    ({}, Sampling(top_p=0.9), torch.float32), ({}, Sampling(), torch.float64), ({}, Sampling(), torch.bfloat16),
])  # fmt: skip
def test_what_does_not_fit_is_read_in_blocks(shape, sampling, dtype, monkeypatch):
    monkeypatch.setattr(InLoops, "read", None)
    linear = nn.Linear(8, 40, bias=False, dtype=dtype)
    hidden, actions = torch.randn(5, 8, dtype=dtype), torch.arange(5)
    found = action_logprobs(Head(linear, **shape), hidden, actions, sampling)
    block = InBlocks(Head(linear, **shape), actions[:, None], sampling).read(linear(hidden), slice(0, 5))
    torch.testing.assert_close(found.sampled, block.logprobs[:, 0])
