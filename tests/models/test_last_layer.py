"""The last feed-forward part: it sees only tokens whose final state is read, and nobody can tell by the numbers."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from nearstep.models.attention.interface import LayerInput, Segment, Segments
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.last_layer import LastFeedForward, _Read
from nearstep.models.roles import frozen_copy, make_critic, make_policy
from tests.models.test_forward import ROWS, rollout_of
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm, tiny_scalar_model

FAMILIES = ["llama", "gpt_neox", "gpt2", "gemma2", "cohere", "qwen3_moe"]


def recorded(module, monkeypatch):
    """How many tokens each call of the module sees, without a hook."""
    seen, plain = [], module.forward

    def forward(states):
        seen.append(states.shape[1])
        return plain(states)

    monkeypatch.setattr(module, "forward", forward)
    return seen


def gradients(role, loss):
    role.model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in role.model.named_parameters() if weight.grad is not None}


def log_loss(policy, rollout):
    logprobs = rollout_logprobs(policy, rollout, Sampling(temperature=0.7)).sampled
    return (logprobs * torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)).sum()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_are_those_of_the_whole_layer(kind, checkpointing):
    model = family(kind)  # torch has no float64 products for experts
    policy = make_policy(model if kind == "qwen3_moe" else model.double(), checkpointing=checkpointing)
    assert policy.last_feed_forward is not None
    rollout = rollout_of(ROWS)
    ours = log_loss(policy, rollout)
    of_ours = gradients(policy, ours)
    theirs = log_loss(replace(policy, last_feed_forward=None), rollout)
    of_theirs = gradients(policy, theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert of_ours.keys() == of_theirs.keys()
    for name, gradient in of_ours.items():
        torch.testing.assert_close(gradient, of_theirs[name], rtol=1e-5, atol=1e-6, msg=name)


def test_the_prompt_token_that_samples_share_counts_once_for_each():
    """Its state is read by every sample; the gradients of all reach the layers."""
    rows = [([5, 6, 7], [8, 9]), ([5, 6, 7], [10]), ([5, 6, 7], [11, 12, 13])]
    policy = make_policy(tiny_causal_lm(dtype=torch.float64))
    of_ours = gradients(policy, log_loss(policy, rollout_of(rows)))
    of_theirs = gradients(policy, log_loss(replace(policy, last_feed_forward=None), rollout_of(rows)))
    for name, gradient in of_ours.items():
        torch.testing.assert_close(gradient, of_theirs[name], rtol=1e-5, atol=1e-7, msg=name)


def test_by_hand():
    read = _Read.of(torch.tensor([3, 1, 3]), tokens=5)
    states = torch.arange(5.0).view(1, 5, 1).requires_grad_()
    taken = read.take(states)
    assert taken.flatten().tolist() == [3, 1, 3]
    whole = read.put_back(10 * taken)
    assert whole.flatten().tolist() == [0, 10, 0, 30, 0]
    (whole * torch.tensor([1.0, 2, 4, 8, 16]).view(1, 5, 1)).sum().backward()
    assert states.grad.flatten().tolist() == [0, 20, 0, 80, 0]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_what_is_read_is_computed(checkpointing, monkeypatch):
    """4 actions of a prompt of 3: the states before them, and for the critic that of the last token."""
    rollout = rollout_of([([1, 2, 3], [4, 5, 6, 7])])
    for role, run, read in (
        (make_policy(tiny_causal_lm(), checkpointing=checkpointing), log_loss, 4),
        (make_critic(tiny_scalar_model(), checkpointing=checkpointing), lambda *of: rollout_values(*of).final.sum(), 5),
    ):
        seen = recorded(role.last_feed_forward.module, monkeypatch)
        run(role, rollout).backward()
        assert seen == [read] * (2 if checkpointing else 1)
        assert not role.last_feed_forward.module._forward_hooks
        assert not role.last_feed_forward.module._forward_pre_hooks


def test_a_frozen_copy_leaves_out_as_much(monkeypatch):
    policy = make_policy(tiny_causal_lm())
    with frozen_copy(policy).active() as reference, torch.no_grad():
        assert reference.last_feed_forward.module is not policy.last_feed_forward.module
        seen = recorded(reference.last_feed_forward.module, monkeypatch)
        log_loss(reference, rollout_of([([1, 2, 3], [4, 5])]))
    assert seen == [2]


def test_who_watches_the_module_sees_all_tokens():
    policy = make_policy(tiny_causal_lm())
    seen = []
    policy.last_feed_forward.module.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    log_loss(policy, rollout_of([([1, 2, 3], [4, 5])]))
    assert seen == [5]


def test_a_pass_that_fails_leaves_nothing_behind(monkeypatch):
    policy = make_policy(tiny_causal_lm())
    module = policy.last_feed_forward.module

    def failing(states):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(module, "forward", failing)
        with pytest.raises(RuntimeError, match="out of memory"):
            log_loss(policy, rollout_of([([1, 2, 3], [4, 5])]))
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


STATES = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
HEADS = torch.zeros(1, 1, 6, 4)
LAYER = LayerInput(0, HEADS, HEADS, HEADS, None, None, None)
PLAN = Segments((Segment(6),))


class Mixing(nn.Module):
    """Not token by token."""

    def forward(self, states):
        return states + states.mean(1, keepdim=True)


class Pairs(nn.Module):
    """More than one tensor."""

    def forward(self, states):
        return states, None


class Untouched(nn.Module):
    """Token by token."""

    def forward(self, states):
        return states


@pytest.mark.parametrize(("module", "fits"), [(Mixing(), False), (Pairs(), False), (Untouched(), True)])
def test_a_module_that_does_more_is_left_alone(module, fits):
    def states_of(plan):
        plan.attend(LAYER)
        output = module(STATES)
        return (output[0] if isinstance(output, tuple) else output)[0]

    assert LastFeedForward(module, layer=0).fits(states_of, PLAN) is fits


def test_a_family_whose_layer_feeds_forward_before_it_attends_is_whole():
    module = Untouched()

    def states_of(plan):
        states = module(STATES)
        plan.attend(LAYER)
        return states[0]

    LastFeedForward(module, layer=0).fits(states_of, PLAN)
    assert not module._forward_pre_hooks
    assert torch.equal(states_of(PLAN), STATES[0])
