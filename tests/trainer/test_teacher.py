"""Teachers: models, folders and adapters; which of them share the policy's frozen weights; which are refused."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from nearstep import ModelError, PPOTrainer
from nearstep.common.errors import TrainingError
from nearstep.models.load import load_policy
from nearstep.training.experience import make_experience
from nearstep.training.frozen_passes import PassLimits, logprobs_under, teacher_logprobs
from nearstep.training.schedules import Phase
from nearstep.training.update import update
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_config
from tests.training.runs import PROMPTS, low_ids, play, settings, small_recipe

BOTH = [Phase(1, 2, policy=True, critic=True)]
SHARED = "The teacher is its adapters on the frozen weights under the policy's: nothing is copied."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base, adapters that have learned something over it, and the same merged."""
    top = tmp_path_factory.mktemp("models")
    tiny_causal_lm().save_pretrained(top / "base")
    byte_tokenizer().save_pretrained(top / "base")
    torch.manual_seed(7)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["v_proj", "o_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(top / "base"), config)
    adapted.save_pretrained(top / "adapters")
    load_policy(str(top / "adapters"), role="model", dtype=torch.float32).save_pretrained(top / "merged")
    byte_tokenizer().save_pretrained(top / "merged")
    return top


def recipe_of(tmp_path, folders, teacher, *, parts=None, **changes):
    names = {"model_name_or_path": str(folders / "base"), "teacher_model_path": str(folders / teacher), **changes}
    return small_recipe(tmp_path, parts={"model": None, **(parts or {})}, teacher_coef=0.5, **names)


def storages(model):
    return {weight.data_ptr() for weight in model.parameters()}


@pytest.mark.parametrize("form", ["advantage", slow("loss")])
def test_adapters_over_the_policys_base_copy_nothing_and_stay_what_they_are(tmp_path, folders, form):
    recipe = recipe_of(tmp_path / "a", folders, "adapters", use_peft=True, teacher_in=form)
    assert SHARED in recipe.introduction
    policy, teacher = recipe.models.policy.model, recipe.models.teacher.policy.model
    base = {name: weight for name, weight in teacher.named_parameters() if "lora" not in name}
    assert {weight.data_ptr() for weight in base.values()} <= storages(policy)
    _, rollout, scores = play(recipe)
    before = teacher_logprobs(rollout, recipe)
    merged = recipe_of(tmp_path / "b", folders, "merged", use_peft=True)
    assert SHARED not in merged.introduction
    assert not storages(merged.models.policy.model) & storages(merged.models.teacher.policy.model)
    torch.testing.assert_close(before, teacher_logprobs(rollout, merged), atol=2e-5, rtol=0)
    assert (before - rollout.logprobs).abs().max() > 0.1
    update(make_experience(rollout, scores, recipe), BOTH, recipe)
    assert torch.equal(teacher_logprobs(rollout, recipe), before)
    after = logprobs_under(recipe.models.policy, rollout, recipe.sampling, PassLimits.of(recipe))
    assert (after - rollout.logprobs).abs().max() > 1e-4  # it was the policy's adapters that learned


@pytest.mark.parametrize("policy", ["whole", slow("biases")])
def test_weights_that_train_are_not_shared(tmp_path, folders, policy):
    """A teacher on them would move with the policy."""
    parts = {}
    if policy == "biases":
        parts["peft_config"] = peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all", task_type="CAUSAL_LM")
        tiny_causal_lm("gpt_neox").save_pretrained(tmp_path / "base")
        byte_tokenizer().save_pretrained(tmp_path / "base")
        parts["peft_config"].target_modules = ["query_key_value"]
        own = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["query_key_value"], task_type="CAUSAL_LM")
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), own).save_pretrained(
            tmp_path / "adapters"
        )
        folders = tmp_path
    recipe = recipe_of(tmp_path / "out", folders, "adapters", parts=parts)
    assert SHARED not in recipe.introduction
    _, rollout, scores = play(recipe)
    before = teacher_logprobs(rollout, recipe)
    update(make_experience(rollout, scores, recipe), BOTH, recipe)
    assert torch.equal(teacher_logprobs(rollout, recipe), before)


def test_a_teacher_of_another_family_as_an_object(tmp_path):
    parts = {"teacher_model": tiny_causal_lm("gpt2", seed=4, dtype=torch.bfloat16)}
    recipe = small_recipe(tmp_path, parts=parts)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    assert rows.teacher_logprobs.dtype == torch.float32
    assert not any(weight.requires_grad for weight in parts["teacher_model"].parameters())
    assert [weight.grad for weight in parts["teacher_model"].parameters()] == [None] * len(
        list(parts["teacher_model"].parameters())
    )


def other_eos():
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<pad>"
    return tokenizer


def with_few_rows():
    config = tiny_config(vocab_size=200)
    config.eos_token_id = config.pad_token_id = None
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(("tokenizer", "model", "said"), [
    (lambda: byte_tokenizer(shift=7), tiny_causal_lm, "its tokenizer gives them another meaning: id"),
    (other_eos, tiny_causal_lm, r"its EOS is '<pad>' \(id 257\), and that of the policy is '<eos>' \(id 256\)"),
    (byte_tokenizer, with_few_rows, "it has embeddings for 200 token ids, and the policy writes 258"),
])  # fmt: skip
def test_another_tokenizer_is_refused_before_any_weight(tmp_path, tokenizer, model, said):
    model().save_pretrained(tmp_path / "teacher")
    tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "model.safetensors").unlink()  # whoever loads it fails
    with pytest.raises(ModelError, match=f"teacher_model: .*{said}"):
        small_recipe(tmp_path / "out", teacher_model_path=str(tmp_path / "teacher"))


def test_the_policy_itself_is_no_teacher(tmp_path):
    model = tiny_causal_lm()
    with pytest.raises(ModelError, match="model and teacher_model are the same object"):
        small_recipe(tmp_path, parts={"model": model, "teacher_model": model})


def test_a_broken_teacher_is_named(tmp_path):
    teacher = tiny_causal_lm(seed=4)
    recipe = small_recipe(tmp_path, parts={"teacher_model": teacher})
    with torch.no_grad():
        teacher.lm_head.weight.fill_(torch.nan)
    _, rollout, scores = play(recipe)
    with pytest.raises(TrainingError, match=r"teacher_model \(torch.float32\) gives log-probs that are not finite"):
        make_experience(rollout, scores, recipe)


def test_a_name_in_python_stands_in_the_settings_of_the_run(tmp_path, folders):
    """So that `nearstep fork` and a resumed run find the teacher again."""
    config = settings(tmp_path, total_episodes=8)
    trainer = PPOTrainer(
        config, byte_tokenizer(), tiny_causal_lm(), reward_funcs=low_ids, teacher_model=folders / "merged",
        train_dataset=[{"prompt": text} for text in PROMPTS], ptx_dataset=[{"text": "ab"}],
    )  # fmt: skip
    trainer.train()
    text = (tmp_path / "run.yaml").read_text()
    assert f"teacher_model_path: {folders / 'merged'}" in text
    assert "ptx_dataset" in text
