"""Folders of adapters for every role: as peft, other trainers and nearstep itself leave them."""

import json
import shutil

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from nearstep import ModelError, PPOTrainer
from nearstep.models.adapters import is_adapted
from nearstep.models.load import family_of, load_policy, load_scalar_model
from nearstep.models.tokenizers import load_tokenizer
from tests.lanes import sampled, slow
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model
from tests.training.runs import PROMPTS, low_ids, settings

IDS = torch.tensor([[5, 6, 7, 8]])
ROWS = [{"prompt": text} for text in PROMPTS]


@pytest.fixture
def base(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def lora(**changes):
    start = {"r": 2, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return peft.LoraConfig(**{**start, **changes})


def supervised(base, folder, *, tokens=0, tokenizer=True, **changes):
    """Adapters as supervised training leaves them, and the logits of the model with them."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens:
        model.resize_token_embeddings(len(byte_tokenizer()) + tokens, mean_resizing=False)
    torch.manual_seed(7)
    adapted = peft.get_peft_model(model, lora(**changes)).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" not in name and weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape))
    adapted.save_pretrained(folder)
    if tokenizer:
        own = byte_tokenizer()
        own.add_tokens([f"<new{number}>" for number in range(tokens)])
        own.save_pretrained(folder)
    with torch.no_grad():
        return adapted(IDS).logits


def rewrite(folder, **changes):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def trainer_of(folder, *, changes=None, **given):
    parts = {"reward_funcs": low_ids, "train_dataset": ROWS, **given}
    return PPOTrainer(args=settings(folder, total_episodes=8, **(changes or {})), **parts)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def first_kl(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["objective/kl"]


def run(trainer, out, expected):
    """Adapters train on from where they were, KL 0 before the first step, and both folders hold the result."""
    assert is_adapted(trainer.model)
    torch.testing.assert_close(logits(trainer.model), expected, atol=1e-5, rtol=1e-5)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert abs(first_kl(out)) < 1e-5
    moved = {n for n, weight in trainer.model.named_parameters() if not torch.equal(weight, before[n])}
    assert moved
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    ends = logits(trainer.model)
    assert not torch.allclose(ends, expected, atol=1e-4)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(out / "policy")), ends, atol=1e-4, rtol=1e-4)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(out / "policy_adapter")
    torch.testing.assert_close(logits(again), ends, atol=1e-4, rtol=1e-4)
    return ends


@pytest.mark.parametrize("setting", [slow("model_name_or_path"), "sft_model_path", slow("model")])
def test_a_policys_adapters_train_on(base, tmp_path, setting):
    expected = supervised(base, tmp_path / "sft")
    given = {setting: str(tmp_path / "sft")}
    out = tmp_path / "out"
    if setting == "model":
        trainer = trainer_of(out, **given)
    else:
        trainer = trainer_of(out, changes=given, processing_class=byte_tokenizer() if "sft" in setting else None)
    assert "goes on training the adapters" in trainer.recipe.introduction
    ends = run(trainer, out, expected)
    # what nearstep leaves is such a folder too
    again = tmp_path / "again"
    run(trainer_of(again, model=str(out / "policy_adapter")), again, ends)


@pytest.mark.parametrize("changes", [
    slow({"use_dora": True}), slow({"target_modules": "all-linear"}), {"modules_to_save": ["lm_head"]},
    slow({"target_modules": ["embed_tokens", "lm_head"]}), slow({"init_lora_weights": "pissa"}),
])  # fmt: skip
def test_adapters_of_every_kind_train_on(base, tmp_path, changes):
    expected = supervised(base, tmp_path / "sft", **changes)
    run(trainer_of(tmp_path / "out", model=str(tmp_path / "sft")), tmp_path / "out", expected)


@pytest.mark.slow
def test_tokens_added_before_the_adapters_were_trained_are_there(base, tmp_path):
    expected = supervised(base, tmp_path / "sft", tokens=6, modules_to_save=["embed_tokens", "lm_head"])
    assert expected.shape[-1] == 264
    assert family_of(str(tmp_path / "sft")).vocab_size == 264
    trainer = trainer_of(tmp_path / "out", model=str(tmp_path / "sft"))
    assert len(trainer.recipe.tokenizer) == 264
    run(trainer, tmp_path / "out", expected)


def test_rows_of_embeddings_saved_beside_lora_are_taken(base, tmp_path):
    """peft saves resized embeddings whole where no adapter is on them."""
    expected = supervised(base, tmp_path / "sft", tokens=6)
    torch.testing.assert_close(logits(load_policy(str(tmp_path / "sft"), role="model", dtype=torch.float32)), expected)


@pytest.mark.slow
def test_a_model_object_that_transformers_put_adapters_in_trains_them(base, tmp_path):
    expected = supervised(base, tmp_path / "sft")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "sft")
    run(trainer_of(tmp_path / "out", model=model, processing_class=byte_tokenizer()), tmp_path / "out", expected)


@pytest.mark.slow
def test_new_adapters_stand_on_the_merged_old_ones(base, tmp_path):
    expected = supervised(base, tmp_path / "sft")
    trainer = trainer_of(tmp_path / "out", model=str(tmp_path / "sft"), changes={"use_peft": True, "lora_r": 3})
    torch.testing.assert_close(logits(trainer.model), expected, atol=1e-4, rtol=1e-4)
    assert trainer.model.active_peft_config.r == 3
    trainer.train()
    assert abs(first_kl(tmp_path / "out")) < 1e-5
    ends = logits(trainer.model)
    chain = load_policy(str(tmp_path / "out" / "policy_adapter"), role="model", dtype=torch.float32)
    torch.testing.assert_close(logits(chain), ends, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "layout", sampled(["relative", "beside", "null", "elsewhere", "both in one", "no tokenizer", "config"], 4)
)
def test_the_model_under_the_adapters_is_found(base, tmp_path, monkeypatch, layout):
    sft = tmp_path / "sft"
    changes = {}
    expected = supervised(base, base if layout == "both in one" else sft, tokenizer=layout != "no tokenizer")
    match layout:
        case "relative":
            monkeypatch.chdir(tmp_path)
            rewrite(sft, base_model_name_or_path="base")
        case "beside":
            rewrite(sft, base_model_name_or_path="../base")
        case "null":
            rewrite(sft, base_model_name_or_path=None)
            changes = {"model_name_or_path": str(base), "sft_model_path": str(sft)}
        case "elsewhere":
            shutil.move(base, tmp_path / "moved")
            changes = {"model_name_or_path": str(tmp_path / "moved"), "sft_model_path": str(sft)}
        case "both in one":
            sft = base
        case "config":  # some trainers write the model's configuration beside the adapters
            shutil.copy(base / "config.json", sft)
    changes = changes or {"model_name_or_path": str(sft)}
    run(trainer_of(tmp_path / "out", changes=changes), tmp_path / "out", expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_model_name_or_path": None}, "do not say to which model they belong.*sft_model_path"),
        ({"base_model_name_or_path": "/gone/base"}, "belong to the model in '/gone/base', and there is no such folder"),
        ({"base_model_name_or_path": "../gone"}, "there is no such folder"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}, r"\(PROMPT_TUNING\) does not fit"),
        ({"peft_type": "OLD"}, "no adapters could be read from"),
    ],
)
@pytest.mark.parametrize("role", ["model", slow("ref_model")])
def test_adapters_that_cannot_be_used_are_refused_before_anything_loads(
    base, tmp_path, monkeypatch, changes, words, role
):
    supervised(base, tmp_path / "sft")
    rewrite(tmp_path / "sft", **changes)
    given = {"processing_class": byte_tokenizer(), "model": tiny_causal_lm(), role: str(tmp_path / "sft")}
    if role == "model":
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ModelError, match=f"(?s)^{role}: .*{words}"):
        trainer_of(tmp_path / "out", **given)


def test_a_lack_of_tensors_or_another_model_is_refused(base, tmp_path):
    supervised(base, tmp_path / "sft")
    rewrite(tmp_path / "sft", target_modules=["q_proj", "v_proj", "o_proj"])
    with pytest.raises(ModelError, match=r"lacks 4 of the adapters' tensors .*o_proj.*random"):
        load_policy(str(tmp_path / "sft"), role="model", dtype=torch.float32)
    rewrite(tmp_path / "sft", target_modules=["q_proj", "v_proj"], r=3)
    with pytest.raises(ModelError, match=r"do not fit their model.*size mismatch"):
        load_policy(str(tmp_path / "sft"), role="model", dtype=torch.float32)
    (tmp_path / "sft" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no adapters could be read"):
        load_policy(str(tmp_path / "sft"), role="model", dtype=torch.float32)


def test_several_adapters_lie_in_folders_of_their_names(base, tmp_path):
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(), adapter_name="one")
    adapted.add_adapter("two", lora(r=3))
    adapted.set_adapter("two")
    adapted.save_pretrained(tmp_path / "sft")
    loaded = load_policy(str(tmp_path / "sft" / "two"), role="model", dtype=torch.float32)
    torch.testing.assert_close(logits(loaded), logits(adapted), atol=1e-5, rtol=1e-5)
    assert len(load_tokenizer(str(tmp_path / "sft" / "two"))) == 258  # that of their model
    with pytest.raises(ModelError, match=r"holds adapters in folders of their own: .*one, .*two.*Give one of them"):
        load_policy(str(tmp_path / "sft"), role="model", dtype=torch.float32)


def test_a_reference_of_adapters_is_their_model_with_them(base, tmp_path):
    expected = supervised(base, tmp_path / "ref")
    trainer = trainer_of(tmp_path / "out", model=str(base), ref_model=str(tmp_path / "ref"))
    reference = trainer.recipe.models.reference.policy.model
    torch.testing.assert_close(logits(reference), expected, atol=1e-5, rtol=1e-5)
    assert not any(weight.requires_grad for weight in reference.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, slow(torch.float16)])
def test_adapters_over_a_narrow_model(base, tmp_path, dtype):
    """A folder's model comes in the type of the settings."""
    AutoModelForCausalLM.from_pretrained(base, dtype=dtype).save_pretrained(base)
    supervised(base, tmp_path / "sft")
    loaded = load_policy(str(tmp_path / "sft"), role="model", dtype=torch.float32)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    trainer = trainer_of(tmp_path / "out", model=str(tmp_path / "sft"), changes={"dtype": "bfloat16"})
    trainer.train()
    assert abs(first_kl(tmp_path / "out")) < 0.05  # rounding


# --- critics and reward models


def scored(base, folder):
    """A reward model's adapters with their head, and the scores that they give."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    torch.manual_seed(5)
    adapted = peft.get_peft_model(model, lora(task_type="SEQ_CLS")).eval()
    adapted.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return logits(adapted)


def test_adapters_of_a_critic_train_on_and_those_of_a_reward_model_do_not(base, tmp_path):
    expected = scored(base, tmp_path / "rm")
    folder = str(tmp_path / "rm")
    torch.testing.assert_close(logits(load_scalar_model(folder, role="reward_model", dtype=torch.float32)), expected)
    trainer = trainer_of(tmp_path / "out", model=str(base), value_model=folder, reward_funcs=(), reward_model=folder)
    critic = trainer.value_model
    assert is_adapted(critic)
    torch.testing.assert_close(logits(critic), expected, atol=1e-5, rtol=1e-5)
    trains = {name for name, weight in critic.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "score" in name for name in trains)
    trainer.train()
    value = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "value")
    torch.testing.assert_close(logits(value), logits(critic), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(critic), expected, atol=1e-4)


@pytest.mark.parametrize("given", ["folder", slow("peft"), slow("transformers")])
def test_a_critic_that_starts_from_a_reward_model_with_adapters_is_saved_whole(base, tmp_path, given):
    scored(base, tmp_path / "rm")
    reward = str(tmp_path / "rm")
    if given == "transformers":
        reward = AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1)
    if given == "peft":
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        reward = peft.PeftModel.from_pretrained(plain, reward)
    trainer = trainer_of(
        tmp_path / "out", model=str(base), reward_funcs=(), reward_model=reward,
        reward_processing_class=byte_tokenizer(),
    )  # fmt: skip
    trainer.train()
    value, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "out" / "value", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(logits(value), logits(trainer.value_model), atol=1e-4, rtol=1e-4)


def test_adapters_of_a_policy_are_no_reward_model(base, tmp_path):
    supervised(base, tmp_path / "sft")
    with pytest.raises(ModelError, match=r"reward_model: .* lacks 1 of the model's tensors \(score.weight\)"):
        load_scalar_model(str(tmp_path / "sft"), role="reward_model", dtype=torch.float32)


@pytest.mark.parametrize("trunk", ["shared", slow("adapter")])
def test_a_critic_on_the_trunk_of_a_folder_of_adapters(base, tmp_path, trunk):
    expected = supervised(base, tmp_path / "sft", modules_to_save=["embed_tokens"])
    out = tmp_path / "out"
    trainer = trainer_of(out, model=str(tmp_path / "sft"), changes={"critic_trunk": trunk})
    run(trainer, out, expected)
    value = AutoModelForSequenceClassification.from_pretrained(out / "value")
    torch.testing.assert_close(logits(value), logits(trainer.value_model), atol=1e-4, rtol=1e-4)


# --- what would not learn


def frozen_peft(base, tmp_path):
    supervised(base, tmp_path / "sft")
    return peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "sft")


def test_models_of_which_nothing_would_learn_are_refused(base, tmp_path):
    objects = {"processing_class": byte_tokenizer()}
    for model in (frozen_peft(base, tmp_path), tiny_causal_lm().requires_grad_(False)):
        with pytest.raises(ModelError, match=r"model: nothing in it would learn.*is_trainable=True"):
            trainer_of(tmp_path / "out", model=model, **objects)
    with pytest.raises(ModelError, match=r"value_model: nothing in it would learn.*is_trainable=True"):
        trainer_of(
            tmp_path / "out", model=tiny_causal_lm(), value_model=tiny_scalar_model().requires_grad_(False), **objects
        )


@pytest.mark.slow
def test_a_frozen_model_trains_under_new_adapters(tmp_path):
    trainer = trainer_of(
        tmp_path, model=tiny_causal_lm().requires_grad_(False), processing_class=byte_tokenizer(),
        peft_config=lora(init_lora_weights=True),
    )  # fmt: skip
    trainer.train()
