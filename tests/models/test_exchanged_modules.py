"""What is put into a model after a role has taken it, or waits for its calls, counts: nothing is read past a module."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from nearstep.common.errors import ModelError
from nearstep.models.distribution import Sampling
from nearstep.models.forward import action_logprobs as chunks_module
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.roles import make_critic, make_policy
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.models.test_forward import ROWS, by_hand, rollout_of
from tests.tiny import tiny_causal_lm, tiny_scalar_model
from tests.training.runs import small_recipe

LONG = [([1, 2], list(range(3, 40))), ([7], list(range(50, 80)))]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """16 actions to a chunk."""
    monkeypatch.setattr(chunks_module, "LOGITS_HELD", {"cpu": 1})


def policy_on(model, tmp_path, seen_by):
    if seen_by == "make_policy":
        return make_policy(model)
    return small_recipe(tmp_path, parts={"model": model}).models.policy


def lora(*targets, **changes):
    return LoraConfig(r=2, init_lora_weights=False, target_modules=list(targets), task_type="CAUSAL_LM", **changes)


class Doubled(nn.Linear):
    """Twice what its weights say."""

    def forward(self, states):
        return 2 * super().forward(states)


def exchange(parent, name):
    old = getattr(parent, name)
    new = Doubled(old.in_features, old.out_features, bias=old.bias is not None, dtype=old.weight.dtype)
    new.load_state_dict(old.state_dict())
    setattr(parent, name, new)


CHANGES = {
    "adapters": lambda model: get_peft_model(model, lora("q_proj", "down_proj")),
    "adapters on the head": lambda model: get_peft_model(model, lora("lm_head")),
    "a child": lambda model: exchange(model.model.layers[0].mlp, "down_proj"),
    "the head": lambda model: exchange(model, "lm_head"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("seen_by", ["make_policy", "trainer"])
def test_what_comes_into_a_model_afterwards_changes_its_logprobs(change, seen_by, tmp_path):
    model = tiny_causal_lm()
    policy, rollout = policy_on(model, tmp_path, seen_by), rollout_of(ROWS)
    before = rollout_logprobs(policy, rollout, Sampling()).sampled
    torch.manual_seed(0)
    CHANGES[change](model)
    after = rollout_logprobs(policy, rollout, Sampling()).sampled
    torch.testing.assert_close(after, by_hand(model, ROWS), atol=1e-5, rtol=0)
    assert (after - before).abs().max() > 1e-3


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize(("targets", "changes"), [(["lm_head"], {}), (["q_proj"], {"modules_to_save": ["lm_head"]})])
def test_adapters_on_the_head_learn_what_transformers_own_forward_pass_teaches(targets, changes):
    torch.manual_seed(0)
    base = tiny_causal_lm(dtype=torch.float64)
    model = get_peft_model(base, lora(*targets, **changes)).double()
    policy = make_policy(model)
    ours = gradients(model, rollout_logprobs(policy, rollout_of(LONG), Sampling(0.7)).sampled.square().sum())
    theirs = gradients(model, by_hand(model, LONG, temperature=0.7).square().sum())
    assert any("lm_head" in name for name in theirs)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_a_head_trained_whole_is_off_with_its_adapters():
    base = tiny_causal_lm()
    model = get_peft_model(base, lora("q_proj", modules_to_save=["lm_head"]))
    policy = make_policy(model)
    with torch.no_grad():
        model.get_output_embeddings().modules_to_save["default"].weight.mul_(2)
        with model.disable_adapter():
            found = rollout_logprobs(policy, rollout_of(ROWS), Sampling()).sampled
    torch.testing.assert_close(found, by_hand(tiny_causal_lm(), ROWS), atol=1e-5, rtol=0)


def test_a_head_of_a_critic_that_is_exchanged_afterwards_is_used():
    model = tiny_scalar_model()
    critic, rollout = make_critic(model), rollout_of(ROWS)
    before = rollout_values(critic, rollout).before_actions
    exchange(model, "score")
    torch.testing.assert_close(rollout_values(critic, rollout).before_actions, 2 * before)


def test_hooks_see_every_call_of_head_and_embedding():
    policy, seen = make_policy(tiny_causal_lm()), {"head": [], "embedding": []}
    policy.head.linear.register_forward_hook(lambda module, given, output: seen["head"].append(len(output)))
    policy.trunk.get_input_embeddings().register_forward_hook(
        lambda module, given, output: seen["embedding"].append(given[0].shape[1])
    )
    loss = rollout_logprobs(policy, rollout_of(LONG), Sampling()).sampled.sum()
    assert seen == {"head": [3, 16, 16, 16, 16], "embedding": [70]}
    loss.backward()
    assert seen["head"][5:] == [16, 16, 16, 3]  # again, from the last but one


def test_gradients_by_torch_autograd_grad_are_those_of_backward():
    policy = make_policy(tiny_causal_lm(dtype=torch.float64))
    names, weights = zip(*policy.model.named_parameters(), strict=True)

    def loss():
        return rollout_logprobs(policy, rollout_of(LONG), Sampling(0.7)).sampled.square().sum()

    found = torch.autograd.grad(loss(), weights)
    assert all(weight.grad is None for weight in weights)
    loss().backward()
    for name, weight, gradient in zip(names, weights, found, strict=True):
        torch.testing.assert_close(gradient, weight.grad, msg=name)


def test_weights_that_the_optimizer_does_not_step_are_refused(tmp_path):
    """Adapters that were put on later compute, but nothing would train: peft has frozen what the optimizer holds."""
    recipe = small_recipe(tmp_path, parts={"model": tiny_causal_lm(layers=1)})
    get_peft_model(recipe.models.policy.model, lora("q_proj"))
    with pytest.raises(ModelError, match=r"model: .* 2 are new \(.*lora_A.*Pass peft_config"):
        train(recipe, State())


def test_a_critic_that_is_frozen_later_is_refused(tmp_path):
    recipe = small_recipe(tmp_path)
    next(recipe.models.critic.model.parameters()).requires_grad_(False)
    with pytest.raises(ModelError, match=r"value_model: .* 1 no longer train"):
        train(recipe, State())
