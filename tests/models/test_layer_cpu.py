"""Layers of Llama's kind as one step on a CPU: the numbers and gradients of transformers' own, in float64."""

import copy
import importlib.util

import pytest
import torch

from nearstep.models.attention import choice as attention_choice
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs, rollout_values, row_states
from nearstep.models.layer_choice import LayerInLoops, layers_in_loops, layers_of_one_step
from nearstep.models.layer_cpu import _Layer
from nearstep.models.layer_steps import activate, differentiate_activation, differentiate_norm, normalise
from nearstep.models.roles import frozen_copy, make_critic, make_policy
from tests.models.test_forward import ROWS, rollout_of
from tests.models.test_roles_and_loading import family
from tests.tiny import tiny_causal_lm, tiny_scalar_model

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")

SHARED = [([5, 6, 7, 9], [8, 9]), ([5, 6, 7, 9], [11, 12, 13, 14]), ([5, 6, 7, 9], [8]), ([20, 21], [22, 23, 24])]
KINDS = [("llama", {}), ("qwen2", {}), ("mistral", {"sliding_window": 3}), ("llama", {"head_dim": 12})]


def steps(model):
    """The layers that run as one step."""
    return [
        vars(module)["forward"] for module in model.modules() if isinstance(vars(module).get("forward"), LayerInLoops)
    ]


def spread(model):
    """Weights so large that attention is far from even, norms and biases that are not what they begin as."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() > 1:
                weights.mul_(4)
            else:
                weights.add_(0.3 * torch.randn(weights.shape, generator=draws))
    return model


def loss_and_gradients(role, rows):
    """A loss in which every action has a weight of its own."""
    rollout = rollout_of(rows)
    logprobs = rollout_logprobs(role, rollout, Sampling(temperature=0.7)).sampled
    loss = (logprobs * torch.linspace(-1, 2, len(logprobs), dtype=logprobs.dtype)).sum()
    role.model.zero_grad()
    loss.backward()
    return loss.detach(), {name: weight.grad for name, weight in role.model.named_parameters()}


def assert_close(ours, theirs):
    (loss, gradients), (other_loss, other_gradients) = ours, theirs
    torch.testing.assert_close(loss.double(), other_loss.double(), rtol=1e-5, atol=1e-5)
    for name, gradient in other_gradients.items():
        assert (gradients[name] is None) == (gradient is None), name
        if gradient is not None:
            gap = (gradients[name].double() - gradient.double()).norm() / gradient.double().norm().clamp(min=1e-9)
            assert gap < 2e-5, (name, gap)


@pytest.mark.parametrize(("kind", "changes"), KINDS)
@pytest.mark.parametrize("rows", [ROWS, SHARED])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_are_those_of_float64(kind, changes, rows, checkpointing):
    model = spread(family(kind, **changes))
    exact = make_policy(copy.deepcopy(model).double(), checkpointing=checkpointing)
    assert not steps(exact.model)
    ours = make_policy(model, checkpointing=checkpointing)
    assert layers_of_one_step(ours.model) == model.config.num_hidden_layers
    assert [step.number for step in steps(ours.model)] == list(range(model.config.num_hidden_layers))
    assert_close(loss_and_gradients(ours, rows), loss_and_gradients(exact, rows))


def test_a_critics_values_and_gradients():
    model = tiny_scalar_model(layers=3)
    exact, ours = make_critic(copy.deepcopy(model).double()), make_critic(model)
    assert len(steps(ours.model)) == 3

    def run(critic):
        found = rollout_values(critic, rollout_of(SHARED))
        critic.model.zero_grad()
        (found.before_actions.square().sum() + found.final.sum()).backward()
        return found.before_actions.detach(), {name: weight.grad for name, weight in critic.model.named_parameters()}

    assert_close(run(ours), run(exact))


def test_no_row_sees_another():
    """Not a bit of a row's states changes when its neighbours do, nor of a token's when later ones do."""
    policy = make_policy(tiny_causal_lm())
    tokens, lengths = torch.arange(30), torch.tensor([7, 1, 12, 10])

    def states(tokens):
        return row_states(policy, tokens, lengths)

    before = states(tokens)
    for start, stop in ((0, 7), (7, 8), (8, 20), (20, 30)):
        changed = tokens.clone()
        changed[start:stop] += 100
        after = states(changed)
        outside = torch.ones(30, dtype=torch.bool)
        outside[start:stop] = False
        assert torch.equal(before[outside], after[outside])
        assert not torch.equal(before[start:stop], after[start:stop])
    changed = tokens.clone()
    changed[15] += 100
    assert torch.equal(before[:15], states(changed)[:15])


def test_frozen_weights_get_no_gradient_and_the_others_the_same():
    frozen = ("q_proj", "k_proj", "v_proj", "down_proj", "input_layernorm")
    whole, part = make_policy(tiny_causal_lm()), make_policy(tiny_causal_lm())
    _, expected = loss_and_gradients(whole, ROWS)
    for name, weight in part.model.named_parameters():
        weight.requires_grad_(not any(word in name for word in frozen))
    _, found = loss_and_gradients(part, ROWS)
    for name, gradient in found.items():
        if any(word in name for word in frozen):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)


def test_a_copy_has_layers_of_its_own():
    policy = make_policy(tiny_causal_lm())
    reference = frozen_copy(policy)
    rollout = rollout_of(ROWS)

    def logprobs(role):
        with torch.no_grad():
            return rollout_logprobs(role, rollout, Sampling()).sampled

    before = logprobs(policy)
    assert torch.equal(logprobs(reference.policy), before)
    with torch.no_grad():
        for layer in policy.trunk.layers:
            layer.mlp.up_proj.weight.zero_()
    assert torch.equal(logprobs(reference.policy), before)
    assert not torch.equal(logprobs(policy), before)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_only_the_last_digits(threads):
    rows = [(list(range(5, 105)), list(range(50, 90))), (list(range(40)), list(range(30, 60)))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = loss_and_gradients(make_policy(tiny_causal_lm()), rows)
        torch.set_num_threads(threads)
        together = loss_and_gradients(make_policy(tiny_causal_lm()), rows)
    finally:
        torch.set_num_threads(before)
    assert_close(together, alone)


@pytest.mark.parametrize("kind", ["qwen3", "gemma2", "cohere", "olmo2", "phi3", "granite", "gpt2", "gpt_neox"])
def test_other_families_keep_their_layers(kind):
    model = (
        tiny_causal_lm(kind)
        if kind.startswith("gpt")
        else family(kind, **({"residual_multiplier": 0.5} if kind == "granite" else {}))
    )
    assert not steps(make_policy(model).model)


def test_a_layer_that_only_looks_alike_is_left_alone(monkeypatch):
    """Same parts, other arithmetic: the activation differs, or a norm's weight counts from one."""
    relu = family("llama", hidden_act="relu")
    assert not steps(make_policy(relu).model)
    shifted = family("llama")
    norm = type(shifted.model.layers[0].input_layernorm)
    plain = norm.forward
    monkeypatch.setattr(norm, "forward", lambda self, states: plain(self, states) * 1.01)
    assert not steps(make_policy(shifted).model)


def test_without_numba_or_in_another_type_nothing_changes(monkeypatch):
    assert not steps(make_policy(tiny_causal_lm().double()).model)
    assert not steps(make_policy(tiny_causal_lm().bfloat16()).model)
    monkeypatch.setattr(attention_choice, "loops_there", lambda: False)
    assert not steps(make_policy(tiny_causal_lm()).model)


def no_steps(monkeypatch):
    def refuse(*_):
        raise AssertionError("a layer ran as one step")

    monkeypatch.setattr(_Layer, "apply", refuse)


def test_who_waits_for_a_call_inside_gets_it(monkeypatch):
    policy, calls = make_policy(tiny_causal_lm()), []
    expected, _ = loss_and_gradients(policy, ROWS)
    handles = [layer.self_attn.register_forward_hook(lambda *_: calls.append(1)) for layer in policy.trunk.layers]
    with monkeypatch.context() as patch:
        no_steps(patch)
        found, _ = loss_and_gradients(policy, ROWS)
    assert len(calls) == 2
    torch.testing.assert_close(found, expected)
    for handle in handles:
        handle.remove()
    with pytest.MonkeyPatch.context() as patch:
        no_steps(patch)
        with pytest.raises(AssertionError, match="as one step"):
            loss_and_gradients(policy, ROWS)


def test_what_is_put_in_the_place_of_a_module_inside_is_used():
    policy = make_policy(tiny_causal_lm())
    expected, _ = loss_and_gradients(policy, ROWS)
    for layer in policy.trunk.layers:
        layer.mlp.forward = lambda states: torch.zeros_like(states)
    assert not torch.isclose(loss_and_gradients(policy, ROWS)[0], expected)


def test_autocast_and_whole_sequences_go_their_own_way(monkeypatch):
    model = tiny_causal_lm()
    ids = torch.arange(12)[None]
    logits = model(input_ids=ids).logits
    policy, coarse = make_policy(model), make_policy(tiny_causal_lm(), autocast=True)
    no_steps(monkeypatch)
    torch.testing.assert_close(policy.model(input_ids=ids).logits, logits)
    generated = policy.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 15)
    loss_and_gradients(coarse, ROWS)


def test_adapters_keep_their_layers():
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny_causal_lm(), peft.LoraConfig(target_modules=["q_proj"], r=2))
    assert not steps(make_policy(adapted).model)


def test_a_model_is_not_changed_twice():
    model = tiny_causal_lm()
    make_policy(model)
    first = steps(model)
    layers_in_loops(model)
    make_policy(model)
    assert steps(model) == first


def test_steps_by_hand():
    """A norm of (3, 4) with ε = 0: the root of the mean square is 5 / √2. silu(0) = 0, its slope there 1/2."""
    states, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([2.0, 1.0])
    found = normalise(states, weight, 0.0)
    root = 5 / 2**0.5
    torch.testing.assert_close(found.states, torch.tensor([[6 / root, 4 / root]]))
    torch.testing.assert_close(found.inverses, torch.tensor([1 / root]))
    gradient, beside = torch.tensor([[1.0, 0.0]]), torch.tensor([[10.0, 20.0]])
    of_states, of_weight = differentiate_norm(states, weight, found.inverses, gradient, beside)
    torch.testing.assert_close(of_weight, torch.tensor([3 / root, 0.0]))
    # ∂ (2 · x₁ / r) / ∂x = 2 / r − 2 · x₁ · x / (2 · r³)
    expected = torch.tensor([[2 / root - 9 / root**3, -12 / root**3]]) + beside
    torch.testing.assert_close(of_states, expected)
    gate, up = torch.tensor([[0.0, 1000.0, -1000.0]]), torch.tensor([[3.0, 2.0, 5.0]])
    torch.testing.assert_close(activate(gate, up), torch.tensor([[0.0, 2000.0, 0.0]]))
    of_gate, of_up = differentiate_activation(gate, up, torch.ones(1, 3))
    torch.testing.assert_close(of_gate, torch.tensor([[1.5, 2.0, 0.0]]))
    torch.testing.assert_close(of_up, torch.tensor([[0.0, 1000.0, 0.0]]))


def test_a_broken_number_is_seen():
    gate, up = torch.ones(1, 3), torch.ones(1, 3)
    gate[0, 1] = torch.nan
    assert activate(gate, up).isnan().tolist() == [[False, True, False]]
    states = torch.ones(2, 4)
    states[1, 2] = torch.nan
    assert normalise(states, torch.ones(4), 1e-6).states.isnan().all(1).tolist() == [False, True]
