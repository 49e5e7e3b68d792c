"""Reward models on their way: how they start, where the head's bias lives, adapters, and what loading refuses."""

import json
import math

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from nearstep.common.errors import ModelError
from nearstep.models.adapters import add_adapters, with_head_trained
from nearstep.models.head_bias import add_bias, store_bias
from nearstep.models.load import load_scalar_model
from nearstep.models.output_layers import scalar_head
from nearstep.models.reward_model import make_scorer
from nearstep.models.reward_start import start_reward_model
from nearstep.models.roles import make_critic
from tests.models.test_roles_and_loading import SMALL
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

ROWS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]


def scores(model):
    return make_scorer(model, role="reward_model", pad_token_id=257, max_tokens=64).score(ROWS)


def load(folder):
    return load_scalar_model(str(folder), role="reward_model", dtype=torch.float32)


def start(given, **changes):
    return start_reward_model(given, **{"seed": 3, "dtype": torch.float32, "pad_token_id": 257, **changes})


def biased(kind="llama", bias=-1.25):
    model = tiny_scalar_model(kind)
    add_bias(model, model.score)
    torch.nn.init.constant_(model.score.bias, bias)
    return model


def save(model, folder):
    model.save_pretrained(folder, state_dict=store_bias(model, scalar_head(model, "reward_model")))
    return folder


# --- the bias of the head


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_a_bias_survives_saving_and_moves_every_score_by_itself(tmp_path, kind):
    plain = scores(tiny_scalar_model(kind))
    expected = scores(biased(kind))
    torch.testing.assert_close(expected, plain - 1.25)
    torch.testing.assert_close(scores(load(save(biased(kind), tmp_path))), expected, atol=1e-6, rtol=0)


def test_plain_transformers_opens_the_folder_without_a_word_and_lacks_exactly_the_bias(tmp_path):
    save(biased(), tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert json.loads((tmp_path / "config.json").read_text())["head_bias"] == model.config.head_bias == -1.25
    expected = scores(biased())
    for row, score in zip(ROWS, expected, strict=True):
        logits = model(torch.tensor([row])).logits
        torch.testing.assert_close(logits[0, 0] + model.config.head_bias, score)


def test_an_object_that_plain_transformers_loaded_gets_its_bias_back(tmp_path):
    save(biased(), tmp_path)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(scores(plain), scores(biased()))


def test_a_critic_that_learnt_another_bias_keeps_that(tmp_path):
    critic = load(save(biased(), tmp_path / "reward"))
    assert torch.equal(make_critic(critic).head.bias, torch.tensor([-1.25]))
    torch.nn.init.constant_(critic.score.bias, 0.5)
    torch.testing.assert_close(scores(load(save(critic, tmp_path / "value"))), scores(biased(bias=0.5)))


def test_a_head_with_a_bias_of_its_own_needs_no_setting():
    model = AutoModelForSequenceClassification.from_config(BertConfig(**{**SMALL, "num_labels": 1}))
    before = model.classifier.bias
    add_bias(model, model.classifier)
    assert model.classifier.bias is before
    assert "classifier.bias" in store_bias(model, model.classifier)
    assert "head_bias" not in model.config.to_dict()


def test_models_without_one_are_saved_as_ever(tmp_path):
    model = tiny_scalar_model()
    assert store_bias(model, model.score).keys() == model.state_dict().keys()
    make_critic(model)
    assert model.score.bias is None


# --- the start


def test_a_new_head_is_normal_and_small_and_has_no_bias_beside_the_model(tmp_path):
    policy = tiny_causal_lm()
    policy.save_pretrained(tmp_path)
    model, is_new = start(str(tmp_path))
    assert is_new
    assert model.score.bias is None
    assert "head_bias" not in model.config.to_dict()
    assert model.score.weight.std().item() == pytest.approx(1 / math.sqrt(33), rel=0.3)
    for name, weights in policy.base_model.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[name], weights)


def test_the_seed_alone_decides_the_head(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    one, two, other = start(str(tmp_path))[0], start(str(tmp_path))[0], start(str(tmp_path), seed=4)[0]
    from_object = start(tiny_causal_lm())[0]
    assert torch.equal(one.score.weight, two.score.weight)
    assert torch.equal(one.score.weight, from_object.score.weight)
    assert not torch.equal(one.score.weight, other.score.weight)


def test_the_caller_keeps_his_random_numbers(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    start(str(tmp_path))
    assert torch.equal(torch.rand(2), expected)


def test_a_trained_head_goes_on(tmp_path):
    model, is_new = start(str(save(biased(), tmp_path)))
    assert not is_new
    assert model.score.bias.item() == -1.25
    assert torch.equal(model.score.weight, biased().score.weight)


def test_two_labels_are_no_start(tmp_path):
    tiny_scalar_model(labels=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="model: no classification model could be read"):
        start(str(tmp_path))


def test_a_trunk_with_holes_is_no_start(tmp_path):
    policy = tiny_causal_lm()
    weights = {name: tensor for name, tensor in policy.state_dict().items() if "layers.1.mlp" not in name}
    policy.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match=r"lacks 3 of the model's tensors \(model.layers.1.mlp"):
        start(str(tmp_path))


@pytest.mark.parametrize("from_folder", [True, False])
def test_an_encoder_starts_from_its_language_model(tmp_path, from_folder):
    torch.manual_seed(0)
    encoder = BertForMaskedLM(BertConfig(**SMALL))
    encoder.save_pretrained(tmp_path)
    model, is_new = start(str(tmp_path) if from_folder else encoder, pad_token_id=0)
    assert is_new
    assert model.classifier.bias.item() == 0
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, encoder.bert.embeddings.word_embeddings.weight)


# --- adapters


def adapted(base, **changes):
    """A reward model on the policy in `base` whose adapters and head have moved."""
    model, _ = start(str(base))
    lora = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "SEQ_CLS", **changes})
    wrapped = add_adapters(model, with_head_trained(lora, ["score"]), seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in wrapped.parameters():
            if weights.requires_grad:
                weights.add_(torch.randn_like(weights) * 0.3)
    return wrapped


@pytest.fixture
def base(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "base")
    byte_tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_adapters_and_head_give_the_same_scores_merged_or_not(base, tmp_path):
    model = adapted(base)
    expected = scores(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(scores(load(tmp_path / "adapter")), expected, atol=0, rtol=1e-6)
    merged = save(model.merge_and_unload(), tmp_path / "merged")
    torch.testing.assert_close(scores(load(merged)), expected, atol=0, rtol=1e-6)


def test_plain_peft_opens_the_adapters_and_says_the_same(base, tmp_path):
    model = adapted(base)
    expected = scores(model)
    model.save_pretrained(tmp_path / "adapter")
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    for row, score in zip(ROWS, expected, strict=True):
        torch.testing.assert_close(plain(input_ids=torch.tensor([row])).logits[0, 0], score)


def test_the_head_is_saved_whatever_the_configuration_forgot(base, tmp_path):
    adapted(base, task_type=None, modules_to_save=None).save_pretrained(tmp_path / "adapter")
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as tensors:
        assert "base_model.model.score.weight" in tensors.keys()  # noqa: SIM118


def test_adapters_with_a_bias_that_was_asked_for_bring_it_along(base, tmp_path):
    model = start(str(base))[0]
    add_bias(model, model.score)
    model = add_adapters(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["score"]), seed=0)
    torch.nn.init.constant_(scalar_head(model.get_base_model(), "reward_model").bias, -1.25)
    expected = scores(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(scores(load(tmp_path / "adapter")), expected, atol=0, rtol=1e-6)


def test_adapters_without_a_head_are_refused(base, tmp_path):
    model = add_adapters(start(str(base))[0], LoraConfig(r=2, target_modules=["q_proj"]), seed=0)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"lacks 1 of the model's tensors \(score.weight\)"):
        load(tmp_path / "adapter")


def test_adapters_of_nobody_are_refused(base, tmp_path):
    adapted(base).save_pretrained(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(ModelError, match="do not say to which model they belong"):
        load(tmp_path / "adapter")
