"""A critic on the policy's weights: one pass for both, gradients that add up, what each phase moves, what is saved."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from nearstep import ConfigError, ModelError
from nearstep.algorithm.losses import policy_loss, value_loss
from nearstep.algorithm.value_heads import LinearHead
from nearstep.models.forward import packing
from nearstep.models.forward.forward import rollout_logprobs, rollout_logprobs_and_outputs, rollout_values
from nearstep.models.roles import make_critic, make_policy
from nearstep.models.shared_trunk import classifier_around, critic_on_trunk
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.schedules import Phase
from nearstep.training.state import State
from nearstep.training.update import improve, update
from tests.lanes import slow
from tests.tiny import tiny_causal_lm, tiny_scalar_model
from tests.training.runs import play, small_recipe

SHARED = {"critic_trunk": "shared"}
LORA = {"use_peft": True, "lora_target_modules": ("q_proj", "v_proj")}
BOTH = Phase(1, 1, policy=True, critic=True)


def recipe_of(folder, **changes):
    """A run whose value head is not zero, so that its loss has a gradient in the trunk."""
    recipe = small_recipe(folder, **{"dtype": torch.float64, **SHARED, **changes})
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        weight = recipe.models.critic.head.weight
        weight.copy_(0.3 * torch.randn(weight.shape, generator=draws, dtype=weight.dtype))
    return recipe


def gradients(model):
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def weights(module):
    return torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()])


def losses_by_hand(recipe, experience, model, head):
    """Both losses row by row through transformers' own forward pass, without packing."""
    rollout, config = experience.rollout, recipe.config
    logprobs, values = [], []
    ends = rollout.row_lengths.cumsum(0).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        tokens, chosen = rollout.tokens[start:end], rollout.is_action[start:end].nonzero().squeeze(-1)
        output = model(input_ids=tokens[None], output_hidden_states=True, use_cache=False)
        spoken = (output.logits[0, chosen - 1] / config.temperature).log_softmax(-1)
        logprobs.append(spoken.gather(1, tokens[chosen, None]).squeeze(-1))
        values.append(head(output.hidden_states[-1][0, chosen - 1]).squeeze(-1))
    now, states = torch.cat(logprobs), torch.cat(values)
    of_policy = policy_loss(now, experience.old_logprobs, experience.advantages, torch.ones_like(now)).mean()
    return of_policy, value_loss(states, experience.values, experience.returns, cliprange=config.cliprange_value).mean()


@pytest.mark.parametrize("changes", [
    slow({}), {"per_device_train_batch_size": 3, "batch_size": 8}, slow({"max_tokens_per_microbatch": 20}),
    {"num_generations": 4}, slow({"gradient_checkpointing": True}),
])  # fmt: skip
def test_the_gradient_is_the_sum_of_both_losses_worked_out_apart(tmp_path, changes):
    parts = {"model": tiny_causal_lm("gpt_neox", dtype=torch.float64)}  # its norms compute in float64, too
    recipe = recipe_of(tmp_path, parts=parts, vf_coef=0.7, trust_region="unbounded", max_grad_norm=None, **changes)
    model, head = recipe.models.policy.model, recipe.models.critic.head
    plain, plain_head = tiny_causal_lm("gpt_neox", dtype=torch.float64), copy.deepcopy(head)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    of_policy, of_critic = losses_by_hand(recipe, experience, plain, plain_head)
    of_policy.backward(retain_graph=True)
    policy_alone = gradients(plain)
    (0.7 * of_critic).backward()
    expected = gradients(plain)
    improve(experience, BOTH, recipe, first=True)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-10, name
    torch.testing.assert_close(head.weight.grad, plain_head.weight.grad, atol=1e-10, rtol=0)
    reached = [name for name in expected if not torch.equal(expected[name], policy_alone[name])]
    assert len(reached) > 10  # the value loss does reach the trunk


def test_one_pass_gives_what_two_give(tmp_path):
    recipe = recipe_of(tmp_path, num_generations=4)
    policy, critic = recipe.models.policy, recipe.models.critic
    rollout = play(recipe)[1]
    passes = []
    hook = policy.trunk.register_forward_hook(lambda *_: passes.append(1))
    logprobs, values = rollout_logprobs_and_outputs(policy, critic, rollout, recipe.sampling)
    assert len(passes) == 1
    hook.remove()
    values = values.values(critic.value_head)
    apart = rollout_values(critic, rollout)
    assert torch.equal(logprobs.sampled, rollout_logprobs(policy, rollout, recipe.sampling).sampled)
    assert torch.equal(values.before_actions, apart.before_actions)
    assert torch.equal(values.final, apart.final)


@pytest.mark.parametrize("kind", [slow("llama"), "gpt_neox", slow("gpt2")])
def test_the_numbers_are_those_of_a_separate_critic_with_the_same_weights(tmp_path, kind):
    model = tiny_causal_lm(kind)
    policy = make_policy(model)
    shared = critic_on_trunk(policy, 257, LinearHead())
    assert shared.trunk is policy.trunk
    with torch.no_grad():
        shared.head.weight.fill_(0.1)
    separate = make_critic(copy.deepcopy(shared.model))
    rollout = play(small_recipe(tmp_path))[1]
    torch.testing.assert_close(
        rollout_values(shared, rollout).before_actions, rollout_values(separate, rollout).before_actions
    )


@pytest.mark.slow
def test_sharing_prompts_changes_no_weights(tmp_path, monkeypatch):
    def after(folder):
        parts = {"model": tiny_causal_lm("gpt_neox", dtype=torch.float64)}
        recipe = recipe_of(folder, parts=parts, num_generations=4, batch_size=8, num_mini_batches=2)
        train(recipe, State())
        return weights(recipe.models.critic.model)

    shared = after(tmp_path / "a")
    monkeypatch.setattr(packing, "shared_leads", lambda items, lengths, leads: torch.zeros_like(leads))
    assert (shared - after(tmp_path / "b")).abs().max() <= 1e-10


@pytest.mark.parametrize(("policy", "critic"), [slow((True, False)), (False, True), slow((True, True))])
def test_what_each_phase_moves(tmp_path, policy, critic):
    """The critic alone moves its head and leaves the policy as it is; the policy alone leaves the head."""
    recipe = recipe_of(tmp_path)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    model, head = recipe.models.policy.model, recipe.models.critic.head
    before = weights(model), weights(head)
    metrics, steps = update(experience, [Phase(1, 2, policy=policy, critic=critic)], recipe)
    moved = [not torch.equal(old, weights(module)) for old, module in zip(before, (model, head), strict=True)]
    assert moved == [policy, critic]
    assert (steps.policy, steps.critic) == (2 * policy, 2 * critic)
    named = metrics.by_name
    assert ["loss/policy_avg" in named, "loss/value_avg" in named] == [policy, critic]
    assert ["policy/grad_norm" in named, "value/grad_norm" in named] == [policy, critic]


def test_the_policys_gradient_has_no_value_loss_in_it_where_the_policy_trains_alone(tmp_path):
    recipe = recipe_of(tmp_path)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    improve(experience, Phase(1, 1, policy=False, critic=True), recipe, first=True)
    assert all(gradient is None for gradient in gradients(recipe.models.policy.model).values())


def test_the_warm_up_leaves_the_policy_alone_and_then_both_train(tmp_path):
    recipe = recipe_of(tmp_path, vf_warmup_updates=1)
    _, rollout, scores = play(recipe)
    before = weights(recipe.models.policy.model)
    update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    assert torch.equal(weights(recipe.models.policy.model), before)
    update(make_experience(rollout, scores, recipe), recipe.schedule.phases(2), recipe)
    assert not torch.equal(weights(recipe.models.policy.model), before)


def test_the_head_has_a_rate_of_its_own_and_no_weight_learns_twice(tmp_path):
    """Plain SGD on one step: the head moves by its rate times its gradient, the trunk by the policy's."""
    rates = {"optim": "sgd", "learning_rate": 0.5, "vf_learning_rate": 0.125, "max_grad_norm": None}
    recipe = recipe_of(tmp_path, **rates)
    learners = recipe.learners
    ids = [id(parameter) for learner in (learners.policy, learners.critic) for parameter in learner.parameters]
    assert len(ids) == len(set(ids)) == len(list(recipe.models.critic.model.parameters())) + 1  # and the output layer
    _, rollout, scores = play(recipe)
    model, head = recipe.models.policy.model, recipe.models.critic.head
    before = weights(model), weights(head)
    improve(make_experience(rollout, scores, recipe), BOTH, recipe, first=True)
    for rate, module, old in zip((0.5, 0.125), (model, head), before, strict=True):
        gradient = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
        torch.testing.assert_close(weights(module), old - rate * gradient)


def test_max_grad_norm_cuts_trunk_and_head_together(tmp_path):
    recipe = recipe_of(tmp_path, optim="sgd", learning_rate=0.5, max_grad_norm=1e-3)
    _, rollout, scores = play(recipe)
    modules = recipe.models.policy.model, recipe.models.critic.head
    before = torch.cat([weights(module) for module in modules])
    improve(make_experience(rollout, scores, recipe), BOTH, recipe, first=True)
    moved = torch.cat([weights(module) for module in modules]) - before
    assert moved.norm().item() == pytest.approx(0.5e-3, rel=1e-4)


def test_an_anchor_computed_anew_takes_no_pass_of_its_own(tmp_path):
    """The reference is a model of its own here, so the policy's trunk runs once for values and log-probs."""
    counts = {}
    for anchor in ("sampled", "recomputed"):
        recipe = recipe_of(tmp_path, anchor=anchor)
        _, rollout, scores = play(recipe)
        passes = []
        hook = recipe.models.policy.trunk.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        experience = make_experience(rollout, scores, recipe)
        hook.remove()
        counts[anchor] = len(passes), experience.values
        torch.testing.assert_close(experience.old_logprobs, rollout.logprobs, atol=1e-5, rtol=0)
    assert counts["sampled"][0] == counts["recomputed"][0] == 1
    torch.testing.assert_close(counts["sampled"][1], counts["recomputed"][1])


@pytest.mark.parametrize("changes", [slow({}), slow({"bf16": True}), LORA])
def test_whole_runs_learn_and_leave_plain_folders(tmp_path, changes):
    recipe = small_recipe(tmp_path, **SHARED, learning_rate=1e-2, **changes)
    assert recipe.models.one_trunk
    ids = torch.tensor([[5, 6, 7, 8]])
    assert not recipe.models.critic.model(ids).logits.any()  # a head of zeros
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    with torch.no_grad():
        expected = recipe.models.policy.model(ids).logits, recipe.models.critic.model(ids).logits
    assert expected[1].any()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    value, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    for found, wanted in zip((policy(ids).logits, value(ids).logits), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    names = {name for name, _ in AutoModelForCausalLM.from_config(policy.config).named_parameters()}
    assert {name for name, _ in policy.named_parameters()} == names


def test_adapters_of_the_policy_are_the_critics_on_a_shared_trunk(tmp_path):
    """The value loss trains them; the frozen weights stay."""
    of_adapters = []
    for vf_coef in (0.0, 1.0):
        recipe = recipe_of(tmp_path, **LORA, max_grad_norm=None, vf_coef=vf_coef)
        _, rollout, scores = play(recipe)
        improve(make_experience(rollout, scores, recipe), BOTH, recipe, first=True)
        of_adapters.append({name: g for name, g in gradients(recipe.models.policy.model).items() if g is not None})
    assert of_adapters[0].keys() == of_adapters[1].keys()
    assert all("lora_" in name for name in of_adapters[0])
    assert any(not torch.equal(g, of_adapters[1][name]) for name, g in of_adapters[0].items())


def test_a_critic_under_adapters_shares_every_frozen_weight_and_no_trained_one(tmp_path):
    recipe = small_recipe(tmp_path, critic_trunk="adapter", **LORA)
    policy, critic = recipe.models.policy.model, recipe.models.critic.model
    assert not recipe.models.one_trunk
    places = {parameter.data_ptr(): name for name, parameter in policy.named_parameters()}
    own = {name: p for name, p in critic.named_parameters() if p.data_ptr() not in places}
    trained = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert trained < own.keys()
    assert all("lora_" in name or "score" in name for name in own)
    assert sum(p.numel() for p in own.values()) < 0.2 * sum(p.numel() for p in policy.parameters())
    assert {id(p) for p in recipe.learners.critic.parameters} == {id(own[name]) for name in trained}


def test_adapters_of_critic_and_policy_do_not_reach_each_other(tmp_path):
    recipe = small_recipe(tmp_path, critic_trunk="adapter", critic="decoupled", learning_rate=1e-2, **LORA)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    policy, critic = recipe.models.policy, recipe.models.critic
    frozen = {n: p.detach().clone() for n, p in policy.model.named_parameters() if not p.requires_grad}
    logprobs, values = rollout_logprobs(policy, rollout, recipe.sampling).sampled, experience.values
    update(experience, [Phase(1, 4, policy=False, critic=True)], recipe)
    assert torch.equal(rollout_logprobs(policy, rollout, recipe.sampling).sampled, logprobs)
    moved = rollout_values(critic, rollout).before_actions
    assert not torch.allclose(moved, values, atol=1e-3)
    update(experience, [Phase(1, 4, policy=True, critic=False)], recipe)
    assert not torch.allclose(rollout_logprobs(policy, rollout, recipe.sampling).sampled, logprobs, atol=1e-4)
    assert torch.equal(rollout_values(critic, rollout).before_actions, moved)
    for name, parameter in policy.model.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, frozen[name])
    with recipe.models.reference.active():
        assert torch.equal(rollout_values(critic, rollout).before_actions, moved)


@pytest.mark.parametrize("changes", [slow({}), {"gradient_checkpointing": True, "bf16": True}])
def test_a_critic_under_adapters_is_saved_whole(tmp_path, changes):
    recipe = small_recipe(tmp_path, critic_trunk="adapter", learning_rate=1e-2, **LORA, **changes)
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    ids = torch.tensor([[5, 6, 7, 8]])
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "value")
    found, expected = value(ids).logits, recipe.models.critic.model(ids).logits
    assert expected.any()
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("changes", "parts", "error", "words"), [
    (SHARED, {"value_model": "folder"}, ModelError, "value_model: with critic_trunk = shared"),
    ({"critic_trunk": "adapter"}, {"value_model": tiny_scalar_model()}, ModelError, "with critic_trunk = adapter"),
    ({"critic_trunk": "adapter"}, {}, ConfigError, "the critic uses the frozen weights under the policy's adapters"),
    (SHARED | {"critic": "decoupled"}, {}, ConfigError, "they have one trunk"),
    (SHARED | {"value_model_path": "x"}, {}, ConfigError, "value_model_path is a model of its own"),
])  # fmt: skip
def test_what_clashes_is_refused(tmp_path, changes, parts, error, words):
    with pytest.raises(error, match=words):
        small_recipe(tmp_path, parts=parts, **changes)


def test_without_a_critic_the_trunk_says_nothing(tmp_path):
    with pytest.warns(UserWarning, match="critic_trunk has no effect with advantage = leave_one_out"):
        recipe = small_recipe(tmp_path, advantage="leave_one_out", num_generations=4, **SHARED)
    assert recipe.models.critic is None


def test_a_reward_model_does_not_start_a_critic_on_the_policys_trunk(tmp_path):
    recipe = small_recipe(tmp_path, parts={"reward_model": tiny_scalar_model(), "reward_funcs": ()}, **SHARED)
    assert recipe.models.one_trunk
    assert "The critic is a head of zeros on the policy's trunk." in recipe.introduction


def test_weights_that_the_policy_trains_in_place_cannot_be_the_critics_base(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True, bias="all")
    given = peft.get_peft_model(tiny_causal_lm("gpt2"), config)
    with pytest.raises(ModelError, match=r"the policy's adapters train .* itself"):
        small_recipe(tmp_path, critic_trunk="adapter", parts={"model": given})


def test_a_family_without_a_classifier_on_the_same_trunk_is_refused(monkeypatch):
    monkeypatch.setattr(
        "nearstep.models.shared_trunk.new_classifier", lambda *_, **__: tiny_scalar_model("gpt2").to("meta")
    )
    with pytest.raises(ModelError, match="has another kind of trunk"):
        classifier_around(tiny_causal_lm(), 257, LinearHead())
