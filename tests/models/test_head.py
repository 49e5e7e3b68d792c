"""The head in chunks: the numbers and gradients of the plain computation, and memory that no vocabulary changes."""

import pytest
import torch
from torch import nn

from nearstep.models.distribution import Sampling, sampling_logprobs
from nearstep.models.forward import action_logprobs as chunks_module
from nearstep.models.forward import logits as logits_module
from nearstep.models.forward.action_logprobs import ActionLogprobs, action_logprobs
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.forward.head import Head
from nearstep.models.roles import make_policy
from tests.memory import peak_bytes
from tests.models.test_forward import rollout_of
from tests.tiny import tiny_causal_lm

ACTIONS, WIDTH, VOCABULARY = 23, 8, 40


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of 16 and 7 actions, worked on by 4."""
    monkeypatch.setattr(chunks_module, "LOGITS_HELD", {"cpu": 16 * VOCABULARY})
    monkeypatch.setattr(logits_module, "LOGITS_IN_WORK", {"cpu": 4 * VOCABULARY})


def plain(head, hidden, actions, sampling, top_ids):
    """The same over all actions and the whole vocabulary at once, differentiated by torch."""
    logprobs = sampling_logprobs(head.logits(hidden), sampling, actions)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs.masked_fill(logprobs == -torch.inf, 0)).sum(-1)
    top = None if top_ids is None else logprobs.gather(-1, top_ids)
    return ActionLogprobs(logprobs.gather(-1, actions[:, None])[:, 0], entropy, top)


def some_loss(found):
    """Uses all that is there, each action with a weight of its own."""
    weights = torch.linspace(-1, 2, len(found.sampled), dtype=found.sampled.dtype)
    loss = (weights * found.sampled).sum() + (weights.square() * found.sampled.square()).sum()
    if found.top is not None:
        loss = loss + (weights[:, None] * found.top.where(found.top > -torch.inf, 0)).sum()
    return loss + (weights.cos() * found.entropy).sum() if found.entropy.requires_grad else loss


def inputs(dtype=torch.float64, *, bias=False, k=0):
    draws = torch.Generator().manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bias, dtype=dtype)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draws))
    hidden = torch.randn(ACTIONS, WIDTH, dtype=torch.float64, generator=draws).to(dtype).requires_grad_()
    actions = torch.randint(0, VOCABULARY, (ACTIONS,), generator=draws)
    top_ids = torch.rand(ACTIONS, VOCABULARY, generator=draws).topk(k).indices if k else None
    return linear, hidden, actions, top_ids


def gradients(compute, head, hidden, *rest, **options):
    for tensor in (hidden, *head.linear.parameters()):
        tensor.grad = None
    found = compute(head, hidden, *rest, **options)
    some_loss(found).backward()
    return found, [tensor.grad for tensor in (hidden, *head.linear.parameters())]


CASES = [
    ({}, Sampling(), 0), ({}, Sampling(0.7), 3), ({"scale": 0.3}, Sampling(0.7), 0),
    ({"softcap": 2.0, "scale": 1.5}, Sampling(1.3), 3), ({}, Sampling(0.7, top_k=5), 0),
    ({}, Sampling(0.9, top_p=0.8), 3), ({"softcap": 2.0}, Sampling(0.9, top_p=0.8, top_k=9), 3),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "sampling", "k"), CASES)
@pytest.mark.parametrize("entropy_gradient", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_numbers_and_gradients_are_those_of_the_plain_computation(
    small_chunks, shape, sampling, k, entropy_gradient, bias
):
    linear, hidden, actions, top_ids = inputs(bias=bias, k=k)
    head = Head(linear, **shape)
    ours, our_gradients = gradients(
        action_logprobs, head, hidden, actions, sampling, top_ids, entropy_gradient=entropy_gradient
    )

    def without_entropy_gradient(*args):
        found = plain(*args)
        return ActionLogprobs(found.sampled, found.entropy.detach(), found.top)

    theirs, their_gradients = gradients(
        plain if entropy_gradient else without_entropy_gradient, head, hidden, actions, sampling, top_ids
    )
    torch.testing.assert_close(ours.sampled, theirs.sampled, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.entropy, theirs.entropy, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours.top, theirs.top, atol=1e-12, rtol=1e-12)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-11, rtol=1e-11)


def test_gradients_of_finite_differences(small_chunks):
    linear, hidden, actions, top_ids = inputs(k=2)

    def all_outputs(states):
        found = action_logprobs(
            Head(linear, softcap=3.0), states, actions, Sampling(0.8), top_ids, entropy_gradient=True
        )
        return found.sampled, found.entropy, found.top

    assert torch.autograd.gradcheck(all_outputs, hidden)


def test_gradients_add_up_over_backward_passes(small_chunks):
    linear, hidden, actions, _ = inputs()
    _, once = gradients(action_logprobs, Head(linear), hidden, actions, Sampling())
    loss = some_loss(action_logprobs(Head(linear), hidden, actions, Sampling()))
    hidden.grad = linear.weight.grad = None
    loss.backward(retain_graph=True)  # uses the logits that were kept
    loss.backward()  # makes them again
    torch.testing.assert_close(hidden.grad, 2 * once[0])
    torch.testing.assert_close(linear.weight.grad, 2 * once[1])


def test_passes_that_are_alive_together_do_not_share_logits(small_chunks):
    linear, hidden, actions, top_ids = inputs()
    head, other = Head(linear), hidden.detach().flip(0).requires_grad_()
    expected = [
        gradients(action_logprobs, Head(linear), each, actions, Sampling(0.7), top_ids) for each in (hidden, other)
    ]
    for each in (hidden, other):
        each.grad = None
    linear.weight.grad = None
    both = [action_logprobs(head, each, actions, Sampling(0.7), top_ids) for each in (hidden, other)]
    for found in both:
        some_loss(found).backward()
    torch.testing.assert_close(hidden.grad, expected[0][1][0], atol=1e-12, rtol=0)
    torch.testing.assert_close(other.grad, expected[1][1][0], atol=1e-12, rtol=0)


def test_a_frozen_head_passes_the_gradient_on(small_chunks):
    linear, hidden, actions, _ = inputs()
    _, expected = gradients(action_logprobs, Head(linear), hidden, actions, Sampling())
    _, (of_hidden, of_weight) = gradients(
        action_logprobs, Head(linear.requires_grad_(False)), hidden, actions, Sampling()
    )
    assert of_weight is None
    torch.testing.assert_close(of_hidden, expected[0])


def test_a_head_that_shares_its_weight_with_the_embedding():
    def gradient(compute):
        linear, _, actions, _ = inputs()
        embedding = nn.Embedding(VOCABULARY, WIDTH)
        embedding.weight = linear.weight
        some_loss(compute(Head(linear), embedding(actions), actions.roll(1), Sampling(), None)).backward()
        return linear.weight.grad

    def plain_sampled(*args):
        return ActionLogprobs(plain(*args).sampled, torch.zeros(ACTIONS, dtype=torch.float64))

    torch.testing.assert_close(gradient(action_logprobs), gradient(plain_sampled))


def test_impossible_tokens_have_no_part_in_entropy_or_gradient(small_chunks):
    linear, hidden, actions, _ = inputs(bias=True)
    with torch.no_grad():
        linear.bias[7] = -torch.inf
    actions = actions.where(actions != 7, 8)
    found, (of_hidden, *_) = gradients(
        action_logprobs, Head(linear), hidden, actions, Sampling(), entropy_gradient=True
    )
    rest = Head(nn.Linear(WIDTH, VOCABULARY - 1))
    rest.linear.weight.data, rest.linear.bias.data = (
        torch.cat([p.data[:7], p.data[8:]]) for p in (linear.weight, linear.bias)
    )
    expected, (of_hidden_without, *_) = gradients(
        action_logprobs, rest, hidden, actions - (actions > 7).long(), Sampling(), entropy_gradient=True
    )
    torch.testing.assert_close(found.entropy, expected.entropy)
    torch.testing.assert_close(of_hidden, of_hidden_without)


def test_no_actions(small_chunks):
    linear, hidden, actions, _ = inputs()
    found = action_logprobs(Head(linear), hidden[:0], actions[:0], Sampling())
    assert found.sampled.shape == found.entropy.shape == (0,)
    found.sampled.sum().backward()
    assert hidden.grad is None or hidden.grad.abs().max() == 0


def test_bfloat16_weights_give_float32_logprobs_and_gradients_near_those_of_float32(small_chunks):
    linear, hidden, actions, _ = inputs(torch.bfloat16)
    found, ours = gradients(action_logprobs, Head(linear), hidden, actions, Sampling(), entropy_gradient=True)
    assert found.sampled.dtype == found.entropy.dtype == torch.float32
    exact = nn.Linear(WIDTH, VOCABULARY, bias=False)
    exact.weight.data = linear.weight.data.float()
    _, wide = gradients(
        action_logprobs, Head(exact), hidden.detach().float().requires_grad_(), actions, Sampling(),
        entropy_gradient=True,
    )  # fmt: skip
    for one, other in zip(ours, wide, strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other).norm() / other.norm() < 0.02


def test_autocast_multiplies_in_bfloat16_and_keeps_gradients_in_float32(small_chunks):
    linear, hidden, actions, _ = inputs(torch.float32)
    found, expected = gradients(action_logprobs, Head(linear), hidden, actions, Sampling())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        coarse, ours = gradients(action_logprobs, Head(linear), hidden, actions, Sampling())
    assert 1e-6 < (coarse.sampled - found.sampled).abs().max() < 0.2
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == torch.float32
        assert 1e-6 < (one - other).norm() / other.norm() < 0.05


def test_chunks_do_not_change_a_policys_gradient(monkeypatch):
    def run(logits_held):
        monkeypatch.setattr(chunks_module, "LOGITS_HELD", {"cpu": logits_held})
        policy = make_policy(tiny_causal_lm(dtype=torch.float64))
        rows = [([1, 2], list(range(3, 40))), ([7], list(range(50, 80)))]
        found = rollout_logprobs(policy, rollout_of(rows), Sampling(0.9))
        found.sampled.sum().backward()
        return found.sampled, found.entropy, policy.head.linear.weight.grad

    for ours, whole in zip(run(258 * 5), run(2**23), strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-10, rtol=1e-10)


def test_no_more_logits_than_the_budget_are_held_d22(monkeypatch):
    """Logits of a chunk and their gradient, whatever the number of actions; besides, two gradients of the weight."""
    monkeypatch.setattr(chunks_module, "LOGITS_HELD", {"cpu": 2**16})
    monkeypatch.setattr(logits_module, "LOGITS_IN_WORK", {"cpu": 2**13})

    def peak(actions, vocabulary):
        linear = nn.Linear(WIDTH, vocabulary, bias=False)
        linear.weight.grad = torch.zeros_like(linear.weight)
        hidden = torch.randn(actions, WIDTH, requires_grad=True)
        ids = torch.randint(0, vocabulary, (actions,))
        return peak_bytes(lambda: action_logprobs(Head(linear), hidden, ids, Sampling(0.7)).sampled.sum().backward())

    assert peak(256, 512) == pytest.approx(2 * 2**16 * 4, rel=0.3)
    assert peak(512, 512) < peak(256, 512) + 512 * WIDTH * 4 * 2 + 512 * 40
    assert peak(256, 2048) < 1.1 * peak(256, 512) + 2 * (2048 - 512) * WIDTH * 4


@pytest.mark.parametrize(("shape", "sampling", "k"), CASES)
@pytest.mark.parametrize("entropy_gradient", [False, True])
def test_log_normalizers_are_those_of_the_models_own_logits(small_chunks, shape, sampling, k, entropy_gradient):
    """Whatever the temperature and the cuts; beside them every other number and gradient stays."""
    linear, hidden, actions, top_ids = inputs(bias=True, k=k)
    head, weights = Head(linear, **shape), torch.linspace(-1, 2, ACTIONS, dtype=torch.float64)
    options = {"entropy_gradient": entropy_gradient}
    without, first = gradients(action_logprobs, head, hidden, actions, sampling, top_ids, **options)
    hidden.grad = None
    linear.zero_grad()
    (weights * head.logits(hidden).logsumexp(-1).square()).sum().backward()
    own = [tensor.grad for tensor in (hidden, *linear.parameters())]
    hidden.grad = None
    linear.zero_grad()
    found = action_logprobs(head, hidden, actions, sampling, top_ids, log_normalizers=True, **options)
    torch.testing.assert_close(found.log_normalizers, head.logits(hidden).logsumexp(-1), atol=1e-12, rtol=1e-12)
    assert torch.equal(found.sampled, without.sampled)
    assert torch.equal(found.entropy, without.entropy)
    (some_loss(found) + (weights * found.log_normalizers.square()).sum()).backward()
    for tensor, one, other in zip((hidden, *linear.parameters()), first, own, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(tensor.grad, one + other, atol=1e-11, rtol=1e-11)


def test_log_normalizers_that_nothing_reads_change_no_gradient(small_chunks):
    linear, hidden, actions, _ = inputs(torch.float32)
    _, without = gradients(action_logprobs, Head(linear), hidden, actions, Sampling())
    found, beside = gradients(action_logprobs, Head(linear), hidden, actions, Sampling(), log_normalizers=True)
    assert found.log_normalizers is not None
    assert all(map(torch.equal, without, beside))
