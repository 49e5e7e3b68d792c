"""Adapters under the trainer of reward models: a reward model's train on, a policy's are merged below a new head."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from nearstep import ModelError
from nearstep.models.adapters import is_adapted
from nearstep.models.load import load_policy, load_scalar_model
from tests.lanes import slow
from tests.reward_modeling.world import base_folder, pairs, trainer
from tests.tiny import byte_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])


def lora(task, **changes):
    start = {"r": 2, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"], "task_type": task}
    return peft.LoraConfig(**{**start, **changes})


@pytest.fixture
def base(tmp_path):
    return base_folder(tmp_path / "base")


@pytest.fixture
def policy_adapters(base, tmp_path):
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora("CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "sft")
    byte_tokenizer().save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


@pytest.fixture
def reward_adapters(base, tmp_path):
    torch.manual_seed(3)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    peft.get_peft_model(plain, lora("SEQ_CLS")).save_pretrained(tmp_path / "rm")
    byte_tokenizer().save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def scores(model):
    with torch.no_grad():
        return model(IDS).logits


def load(folder):
    return load_scalar_model(str(folder), role="reward_model", dtype=torch.float32)


@pytest.mark.parametrize("given", ["folder", slow("peft"), slow("transformers")])
def test_a_reward_models_adapters_train_on(base, reward_adapters, tmp_path, given):
    expected = scores(load(reward_adapters))
    model = str(reward_adapters)
    if given == "peft":
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = peft.PeftModel.from_pretrained(plain, reward_adapters, is_trainable=True)
    if given == "transformers":
        model = AutoModelForSequenceClassification.from_pretrained(reward_adapters, num_labels=1)
    trained = trainer(tmp_path / "out", pairs(20), model=model, normalize="none")
    assert is_adapted(trained.model)
    torch.testing.assert_close(scores(trained.model), expected, atol=1e-5, rtol=1e-5)
    learns = {name for name, weight in trained.model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name or "score" in name for name in learns)
    folder = trained.train()
    ends = scores(trained.model)
    assert not torch.allclose(ends, expected, atol=1e-4)
    torch.testing.assert_close(scores(load(folder)), ends, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores(load(tmp_path / "out" / "reward_adapter")), ends, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("new", [slow({}), {"use_peft": True, "lora_r": 3}])
def test_a_policys_adapters_are_merged_below_a_new_head(policy_adapters, tmp_path, new):
    merged = load_policy(str(policy_adapters), role="model", dtype=torch.float32)
    trained = trainer(tmp_path / "out", pairs(20), model=str(policy_adapters), **new)
    states = trained.run.trained.inner.base_model(IDS).last_hidden_state
    torch.testing.assert_close(states, merged.base_model(IDS).last_hidden_state, atol=1e-4, rtol=1e-4)
    assert is_adapted(trained.model) == bool(new)
    folder = trained.train()
    for name in ("reward", "reward_adapter") if new else ("reward",):
        torch.testing.assert_close(scores(load(tmp_path / "out" / name)), scores(trained.model), atol=1e-4, rtol=1e-4)
    assert folder.name == "reward"


def test_a_policy_object_with_adapters_starts_a_reward_model(base, policy_adapters, tmp_path):
    merged = load_policy(str(policy_adapters), role="model", dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), policy_adapters)
    trained = trainer(tmp_path / "out", pairs(20), model=model)
    states = trained.run.trained.inner.base_model(IDS).last_hidden_state
    torch.testing.assert_close(states, merged.base_model(IDS).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_what_would_not_learn_or_does_not_fit_is_refused(base, reward_adapters, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    frozen = peft.PeftModel.from_pretrained(plain, reward_adapters)
    with pytest.raises(ModelError, match=r"model: nothing in it would learn.*is_trainable=True"):
        trainer(tmp_path / "out", pairs(20), model=frozen)
    with pytest.raises(ModelError, match="it is a peft model already"):
        trainer(tmp_path / "out", pairs(20), model=frozen, use_peft=True)
    with pytest.raises(ModelError, match=r"peft_config: PromptTuningConfig \(PROMPT_TUNING\) does not fit"):
        trainer(tmp_path / "out", pairs(20), model=str(base), peft_config=peft.PromptTuningConfig(num_virtual_tokens=2))
