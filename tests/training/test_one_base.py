"""One base for four roles: adapters of policy, critic and reward model on the same frozen weights, the reference by
switching off; what it gives, what is copied, what is written, and what is refused."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from nearstep import ConfigError, ModelError, PPOConfig
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.run import assemble
from nearstep.models.load import load_adapted_scalar_model
from nearstep.training.experience import make_experience
from nearstep.training.loop import train
from nearstep.training.schedules import Phase
from nearstep.training.state import State
from nearstep.training.update import update
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, play, settings, small_recipe

BOTH = [Phase(1, 2, policy=True, critic=True)]
IDS = torch.tensor([[5, 6, 7, 8]])
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt_neox": ["query_key_value"]}
ONE = {"use_peft": True, "lora_r": 2, "critic_trunk": "adapter", "reward_trunk": "adapter"}


def world(top, kind="llama", dtype=torch.float32, **changes):
    """A base, and the adapters of a reward model over it, as `nearstep reward` and peft leave them."""
    tiny_causal_lm(kind, dtype=dtype).save_pretrained(top / "base")
    byte_tokenizer().save_pretrained(top / "base")
    torch.manual_seed(3)
    given = {"r": 4, "init_lora_weights": False, "target_modules": TARGETS[kind], "modules_to_save": ["score"]}
    model = AutoModelForSequenceClassification.from_pretrained(top / "base", num_labels=1)
    peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", **{**given, **changes})).save_pretrained(
        top / "reward"
    )
    byte_tokenizer().save_pretrained(top / "reward")
    return top


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return world(tmp_path_factory.mktemp("models"))


def recipe_of(out, folders, *, parts=None, **changes):
    names = {"model_name_or_path": str(folders / "base"), "reward_model_path": str(folders / "reward")}
    inputs = RunInputs(train_dataset=[{"prompt": text} for text in PROMPTS], **(parts or {}))
    return assemble(settings(out, **{**names, **ONE, **changes}), inputs)


def scorer_of(recipe):
    (source,) = recipe.rewards.sources
    return source._scorer


def learned(recipe):
    """What policy and critic are after one update, by name."""
    _, rollout, scores = play(recipe)
    update(make_experience(rollout, scores, recipe), BOTH, recipe)
    networks = {"policy": recipe.models.policy.model, "value": recipe.models.critic.model}
    return scores.total, {
        f"{role} {name}": weight.detach().clone()
        for role, network in networks.items()
        for name, weight in network.named_parameters()
        if weight.requires_grad
    }


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt_neox", marks=pytest.mark.slow)])
def test_four_roles_on_one_base_give_what_copies_of_it_give(tmp_path, kind):
    top = world(tmp_path, kind)
    changes = {"lora_target_modules": TARGETS[kind], "gradient_checkpointing": True, "learning_rate": 1e-2}
    one = recipe_of(tmp_path / "one", top, **changes)
    policy = {weight.data_ptr() for weight in one.models.policy.model.parameters()}
    frozen = [weight for weight in one.models.policy.model.parameters() if not weight.requires_grad]
    before = [weight.clone() for weight in frozen]
    for model in (one.models.critic.model, scorer_of(one).model):
        own = {n for n, weight in model.named_parameters() if weight.data_ptr() not in policy}
        assert own
        assert all("lora_" in name or "score" in name for name in own)
    assert one.models.reference.adapters_off
    scores, found = learned(one)
    assert scores.std() > 0.01
    assert all(map(torch.equal, frozen, before))
    # the same adapters, each over a base of its own
    apart = recipe_of(tmp_path / "apart", top, **changes)
    reward = load_adapted_scalar_model(str(top / "reward"), role="reward_model", dtype=torch.float32)
    object.__setattr__(scorer_of(apart), "trunk", reward.base_model.model.base_model)
    own_critic = apart.models.critic.model
    for module in own_critic.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None and not weight.requires_grad:
                module._parameters[name] = torch.nn.Parameter(weight.detach().clone(), requires_grad=False)
    others, expected = learned(apart)
    assert torch.equal(scores, others)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.slow
def test_a_reward_model_on_the_base_scores_as_its_merged_copy(tmp_path, folders):
    one, merged = (recipe_of(tmp_path / trunk, folders, reward_trunk=trunk) for trunk in ("adapter", "separate"))
    assert "is its adapters on the policy's frozen weights" in one.introduction
    prompts, rollout, scores = play(one)
    torch.testing.assert_close(scores.total, merged.rewards(prompts, rollout).total, atol=1e-4, rtol=1e-4)
    learned(one)
    assert torch.equal(one.rewards(prompts, rollout).total, scores.total)  # no step of the others reaches it


@pytest.mark.slow
def test_what_is_written_opens_with_plain_peft_and_goes_on(tmp_path, folders):
    recipe = recipe_of(tmp_path / "out", folders, learning_rate=1e-2, total_episodes=8)
    train(recipe, State())
    recipe.checkpoint.save_final(State())
    policy = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out" / "policy_adapter")
    value = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "value_adapter", num_labels=1
    )
    with torch.no_grad():
        for found, model in ((policy, recipe.models.policy.model), (value, recipe.models.critic.model)):
            assert torch.equal(found(IDS).logits, model(IDS).logits)
    sizes = {
        folder: sum(file.stat().st_size for file in (tmp_path / "out" / folder).glob("*.safetensors"))
        for folder in ("value", "value_adapter")
    }
    assert sizes["value_adapter"] < 0.2 * sizes["value"]
    again = recipe_of(tmp_path / "again", folders, value_model_path=str(tmp_path / "out" / "value_adapter"))
    assert "goes on training the adapters and the head" in again.introduction
    with torch.no_grad():
        assert torch.equal(again.models.critic.model(IDS).logits, recipe.models.critic.model(IDS).logits)
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "policy")(IDS).logits
        torch.testing.assert_close(whole, recipe.models.policy.model(IDS).logits, atol=1e-4, rtol=1e-4)


def test_a_critic_may_start_as_the_reward_model_on_the_base(tmp_path, folders):
    recipe = recipe_of(tmp_path, folders, value_model_path=str(folders / "reward"))
    with torch.no_grad():
        expected = scorer_of(recipe).model(IDS).logits
        assert torch.equal(recipe.models.critic.model(IDS).logits, expected)
    learned(recipe)
    with torch.no_grad():
        assert not torch.equal(recipe.models.critic.model(IDS).logits, expected)
        assert torch.equal(scorer_of(recipe).model(IDS).logits, expected)


@pytest.mark.slow
def test_each_role_has_adapters_of_its_own_kind(tmp_path, folders):
    by_settings = recipe_of(
        tmp_path / "a", folders, vf_lora_r=3, vf_lora_alpha=6, vf_lora_target_modules=["o_proj"], use_dora=True,
        use_rslora=True, lora_modules_to_save=["lm_head"],
    )  # fmt: skip
    policy, critic = (role.model.active_peft_config for role in (by_settings.models.policy, by_settings.models.critic))
    assert (policy.r, policy.lora_alpha, policy.use_dora, policy.use_rslora) == (2, 32, True, True)
    assert policy.modules_to_save == ["lm_head"]
    assert (critic.r, critic.lora_alpha, set(critic.target_modules), critic.use_dora) == (3, 6, {"o_proj"}, True)
    assert set(critic.modules_to_save) == {"score", "classifier"}
    own = peft.LoHaConfig(r=2, target_modules=["down_proj"], task_type="SEQ_CLS")
    by_object = recipe_of(tmp_path / "b", folders, parts={"value_peft_config": own})
    assert by_object.models.critic.model.active_peft_config.peft_type == "LOHA"
    assert by_object.models.policy.model.active_peft_config.peft_type == "LORA"
    learned(by_object)


@pytest.mark.slow
def test_a_narrow_base(tmp_path):
    recipe = recipe_of(tmp_path / "out", world(tmp_path, dtype=torch.bfloat16), dtype="bfloat16")
    assert recipe.models.policy.dtype == torch.bfloat16
    _, found = learned(recipe)
    assert all(weight.isfinite().all() for weight in found.values())


def rename_base(folder, name):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": str(name)}))


def test_adapters_of_another_base_are_refused(tmp_path, folders):
    shutil.copytree(folders / "base", tmp_path / "other")
    shutil.copytree(folders / "reward", tmp_path / "reward")
    rename_base(tmp_path / "reward", tmp_path / "other")
    with pytest.raises(
        ModelError, match=r"reward_model: the adapters .* cannot stand on the policy's base: they belong"
    ):
        recipe_of(tmp_path / "out", folders, reward_model_path=str(tmp_path / "reward"))
    with pytest.raises(ModelError, match=r"value_model: the adapters .* cannot stand on the policy's base"):
        recipe_of(tmp_path / "out", folders, value_model_path=str(tmp_path / "reward"))


@pytest.mark.parametrize(("changes", "parts", "error", "words"), [
    ({"reward_model_path": "base"}, {}, ModelError, "reward_trunk = adapter needs the folder of a reward model's"),
    ({"use_peft": False, "critic_trunk": "shared"}, {}, ModelError, "the policy has no adapters"),
    ({"value_model_path": "base"}, {}, ModelError, "with critic_trunk = adapter the critic is adapters and a head"),
    ({"value_model_path": "reward", "vf_lora_r": 3}, {}, ConfigError, "value_model_path has the critic's adapters"),
    ({"critic_trunk": "shared"}, {"value_peft_config": peft.LoraConfig()}, ConfigError, "no adapters are put on for"),
    ({"load_in_4bit": True}, {"model": tiny_causal_lm()}, ConfigError, "load_in_4bit"),
])  # fmt: skip
def test_what_cannot_be_on_one_base_is_refused(tmp_path, folders, changes, parts, error, words):
    changes = {n: str(folders / v) if n.endswith("_path") else v for n, v in changes.items()}
    with pytest.raises(error, match=words):
        recipe_of(tmp_path, folders, parts=parts, **changes)


def test_without_a_reward_model_there_is_none_to_put_on(tmp_path, folders):
    with pytest.raises(ConfigError, match="reward_trunk = adapter: there is no reward model"):
        small_recipe(tmp_path, **ONE)


@pytest.mark.parametrize(("given", "words"), [
    ({"reward_trunk": "adapter", "offload_roles": ["reward"]}, "with reward_trunk = adapter the reward model has the"),
    ({"critic_trunk": "adapter", "offload_roles": ["value"]}, "with critic_trunk = adapter the critic has the policy"),
    ({"reward_trunk": "adapter", "dp_shard": 2}, "reward_trunk = adapter scores with the policy's weights"),
    ({"load_in_4bit": True, "dp_shard": -1}, "load_in_4bit packs several weights into one number"),
    ({"optim": "adamw_8bit", "dp_shard": 2}, "optim = adamw_8bit keeps moments in blocks"),
    ({"offload_roles": ["reference"], "dp_shard": 2}, "offload_roles moves whole networks"),
])  # fmt: skip
def test_settings_that_clash(given, words):
    with pytest.raises(ConfigError, match=words):
        PPOConfig(**given)


@pytest.mark.parametrize("given", [
    {"vf_lora_r": 2}, {"bnb_4bit_quant_type": "fp4"}, {"gradient_checkpointing_every": 2}, {"use_dora": True},
])  # fmt: skip
def test_settings_without_effect_are_named(given):
    (name,) = given
    with pytest.warns(UserWarning, match=f"{name} has no effect"):
        PPOConfig(**given)
