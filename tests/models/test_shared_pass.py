"""Rows whose tokens lie over several partners give the numbers and gradients that they give on one."""

import copy
from dataclasses import replace

import pytest
import torch

from nearstep.algorithm.value_heads import LinearHead
from nearstep.common.errors import ModelError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_logprobs_and_outputs, rollout_outputs
from nearstep.models.roles import make_critic, make_policy
from nearstep.models.shared_trunk import critic_on_trunk
from nearstep.types import TopLogprobs
from tests.models.test_forward import rollout_of
from tests.models.threads import together
from tests.tiny import tiny_causal_lm, tiny_scalar_model

# Two rows of one prompt, one long row, and rows that end where a share of the tokens does.
ROWS = [
    ([5, 6, 7], [8, 9]), ([5, 6, 7], [4]), ([10], [*range(11, 40)]), ([3, 3, 3], [1, 2]),
    ([20, 21], [22, 23, 24]), ([7], [7]), ([9, 9, 9, 9, 9, 9], [1, 2, 3]),
]  # fmt: skip
ASKED = {"entropy_gradient": True, "log_normalizers": True}


def whole():
    found = rollout_of(ROWS)
    top = torch.arange(2 * len(found.logprobs)).view(-1, 2) % 250
    return replace(found, top=TopLogprobs(top, torch.zeros(top.shape)))


def of_logprobs(found):
    """A loss of every part, each action's under a weight of its own, which is known without the others."""
    parts = [found.sampled, found.entropy, found.log_normalizers, *found.top.T]
    return sum((number + 1) * (part * part.detach().sin()).sum() for number, part in enumerate(parts))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def on_partners(size, model, work):
    """What each of `size` partners gets from `work(model, run, rows)` on every size-th row, and summed gradients."""
    models = [copy.deepcopy(model) for _ in range(size)]
    # Before the threads: what makes a role builds models, for which transformers sets torch's default type for all.
    works = [work(mine) for mine in models]

    def one(partner):
        found, loss = works[partner.place](partner, whole().select(torch.arange(partner.place, len(ROWS), size)))
        return found, gradients(models[partner.place], loss)

    found = together(size, one)
    summed = {}
    for _, each in found:
        for name, gradient in each.items():
            summed[name] = summed.get(name, 0) + gradient
    return [values for values, _ in found], summed


def assert_same(expected, found):
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(found[name], gradient, atol=1e-9, rtol=1e-7, msg=name)


def policy_pass(checkpointing=False):
    def work(model):
        policy = make_policy(model, checkpointing=checkpointing)

        def one_pass(run, rollout):
            running = policy if run is None else replace(policy, run=run)
            found = rollout_logprobs(running, rollout, Sampling(0.7), **ASKED)
            return found, of_logprobs(found)

        return one_pass

    return work


@pytest.mark.parametrize(
    ("kind", "size", "checkpointing"),
    [("gpt_neox", 2, False), ("gpt2", 4, True), ("gpt2", 2, False)],
)
def test_logprobs_and_gradients_of_a_policy(kind, size, checkpointing):
    model = tiny_causal_lm(kind, dtype=torch.float64)
    alone, loss = policy_pass()(model)(None, whole())
    expected = gradients(model, loss)
    found, summed = on_partners(size, model, policy_pass(checkpointing))
    rows = torch.arange(len(ROWS)).repeat_interleave(whole().action_counts)
    for place, each in enumerate(found):
        mine = rows % size == place
        for name in ("sampled", "entropy", "log_normalizers", "top"):
            torch.testing.assert_close(getattr(each, name), getattr(alone, name)[mine], atol=1e-10, rtol=1e-10)
    assert_same(expected, summed)


@pytest.mark.parametrize("size", [2, 4])
def test_fewer_heads_of_keys_than_partners(size):
    """Llama's norms compute in float32."""
    model = tiny_causal_lm("llama", dtype=torch.float64)
    assert model.config.num_key_value_heads < 4
    _, loss = policy_pass()(model)(None, whole())
    expected = gradients(model, loss)
    _, summed = on_partners(size, model, policy_pass())
    for name, gradient in expected.items():
        assert (summed[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_values_of_a_critic_and_one_on_the_policys_trunk():
    model = tiny_scalar_model("gpt2", dtype=torch.float64)

    def values(model):
        critic = make_critic(model)

        def one_pass(run, rollout):
            found = rollout_outputs(critic if run is None else replace(critic, run=run), rollout)
            return found, (found.before_actions.sin().sum() + found.final.cos().sum())

        return one_pass

    _, loss = values(model)(None, whole())
    expected = gradients(model, loss)
    found, summed = on_partners(2, model, values)
    assert [len(each.final) for each in found] == [4, 3]
    assert_same(expected, summed)

    model = tiny_causal_lm("gpt2", dtype=torch.float64)

    def both(model):
        policy = make_policy(model)
        critic = critic_on_trunk(policy, 0, LinearHead())
        torch.nn.init.ones_(critic.head.double().weight)

        def one_pass(run, rollout):
            own = (policy, critic) if run is None else (replace(policy, run=run), replace(critic, run=run))
            logprobs, outputs = rollout_logprobs_and_outputs(*own, rollout, Sampling(), **ASKED)
            return outputs, of_logprobs(logprobs) + outputs.before_actions.square().sum() + outputs.final.exp().sum()

        return one_pass

    _, loss = both(model)(None, whole())
    expected = gradients(model, loss)
    assert_same(expected, on_partners(4, model, both)[1])


def test_a_pass_without_a_gradient_is_a_process_s_own():
    """It waits for nobody."""
    model = tiny_causal_lm("gpt2", dtype=torch.float64)
    passes = [policy_pass()(copy.deepcopy(model)) for _ in range(2)]

    def one(partner):
        with torch.no_grad():
            return passes[partner.place](partner, whole())[0] if partner.place == 0 else None

    alone = policy_pass()(model)(None, whole())[0]
    assert torch.equal(together(2, one)[0].sampled, alone.sampled.detach())


def test_partners_that_are_not_at_the_same_pass_are_told():
    model = tiny_causal_lm("gpt2")

    policies = [make_policy(copy.deepcopy(model)) for _ in range(2)]

    def one(partner):
        policy = replace(policies[partner.place], run=partner)
        return rollout_logprobs(policy, whole(), Sampling(1.0 + partner.place))

    with pytest.raises(RuntimeError, match="ask different things"):
        together(2, one)


def test_heads_that_cannot_be_dealt_are_refused():
    model = tiny_causal_lm("gpt2")
    with pytest.raises(ModelError, match=r"attention heads cannot be dealt to 3 processes"):
        on_partners(3, model, policy_pass())
