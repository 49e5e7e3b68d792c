"""Models in their roles: which are taken, which are refused and with which words, what saving and copying leave."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
)

from nearstep.common.errors import ModelError
from nearstep.models.forward.forward import rollout_values
from nearstep.models.load import critic_from_trunk, load_policy, load_scalar_model
from nearstep.models.reward_model import make_scorer
from nearstep.models.roles import frozen_copy, make_critic, make_policy
from nearstep.models.tokenizers import load_tokenizer
from tests.models.test_forward import ROWS, rollout_of
from tests.tiny import tiny_causal_lm, tiny_config, tiny_scalar_model

SMALL = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


def family(kind, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(type(AutoConfig.for_model(kind))(**{**SMALL, **changes}))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [("qwen3", {}), ("mistral", {"sliding_window": 2}), ("gemma2", {"sliding_window": 2}),
     ("gemma3_text", {"sliding_window": 2}), ("cohere", {}),
     ("granite", {"logits_scaling": 3.0}), ("olmo2", {}), ("phi3", {}), ("qwen3_moe", {})],
)  # fmt: skip
def test_families_with_windows_caps_and_scales(kind, changes):
    make_policy(family(kind, **changes))


def test_dropout_is_off():
    policy = make_policy(tiny_causal_lm("gpt_neox").train(), checkpointing=True)
    dropouts = [module for module in policy.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert dropouts
    assert not any(module.training for module in dropouts)


def test_a_classification_model_is_no_policy():
    with pytest.raises(ModelError, match=r"model: .*gives \[1\] for 5 ids .* logits of 258 tokens"):
        make_policy(tiny_scalar_model())


def test_a_causal_model_is_no_critic():
    with pytest.raises(ModelError, match=r"value_model: .*no linear head"):
        make_critic(tiny_causal_lm())


def test_several_labels_are_refused():
    with pytest.raises(ModelError, match="3 labels"):
        make_critic(tiny_scalar_model(labels=3))


def test_something_else_is_named():
    with pytest.raises(ModelError, match=r"Linear is no transformers model, .* called as model"):
        make_policy(torch.nn.Linear(2, 2))


def test_token_classification_makes_a_critic():
    for kind in ("llama", "gpt_neox"):
        critic = make_critic(AutoModelForTokenClassification.from_config(tiny_config(kind)))
        assert rollout_values(critic, rollout_of(ROWS)).before_actions.shape == (10,)


def test_reference_stays_what_the_policy_was():
    policy = make_policy(tiny_causal_lm())
    with frozen_copy(policy).active() as reference:
        before = reference.head.linear.weight.clone()
        with torch.no_grad():
            policy.head.linear.weight.add_(1)
        assert torch.equal(reference.head.linear.weight, before)
        assert not any(parameter.requires_grad for parameter in reference.model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_critic_from_trunk_values_nothing_at_first(kind):
    critic = make_critic(critic_from_trunk(tiny_causal_lm(kind), 257))
    values = rollout_values(critic, rollout_of(ROWS))
    assert values.before_actions.abs().max() == 0
    assert values.final.abs().max() == 0


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gpt2"])
def test_scores_are_read_at_the_last_token_whatever_its_id_d27(kind):
    rows = [[1, 2, 257, 3], [257, 257], [4, 5, 6, 7, 8, 257]]
    model = tiny_scalar_model(kind)
    expected = [model.base_model(torch.tensor([row])).last_hidden_state[0, -1] @ model.score.weight[0] for row in rows]
    for budget in (5, 1000):
        scorer = make_scorer(tiny_scalar_model(kind), role="reward_model", pad_token_id=257, max_tokens=budget)
        torch.testing.assert_close(scorer.score(rows), torch.stack(expected).detach(), atol=1e-5, rtol=0)


def test_encoders_score_under_their_own_mask():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    model = BertForSequenceClassification(config).eval()
    scorer = make_scorer(model, role="reward_model", pad_token_id=0, max_tokens=8)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    alone = torch.cat([model(torch.tensor([row])).logits[:, 0] for row in rows]).detach()
    torch.testing.assert_close(scorer.score(rows), alone, atol=1e-5, rtol=0)


def test_a_folder_without_a_trained_head_is_an_error(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"reward_model: .*score\.weight.*random"):
        load_scalar_model(str(tmp_path), role="reward_model", dtype=torch.float32)


def test_a_folder_with_several_labels_is_an_error(tmp_path):
    tiny_scalar_model(labels=2).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="2 labels"):
        load_scalar_model(str(tmp_path), role="reward_model", dtype=torch.float32)


@pytest.mark.parametrize("load", [
    lambda path: load_policy(path, role="model", dtype=torch.float32),
    lambda path: load_scalar_model(path, role="reward_model", dtype=torch.float32),
    lambda path: load_tokenizer(path),
])  # fmt: skip
def test_missing_and_empty_folders_are_named(load, tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(str(tmp_path))


def test_our_attention_leaves_no_trace_in_saved_models(tmp_path):
    policy = make_policy(tiny_causal_lm())
    policy.model.save_pretrained(tmp_path)
    assert "nearstep" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))


def test_a_users_own_generate_still_works_on_a_prepared_model():
    ids = torch.tensor([[5, 6, 7]])
    expected = tiny_causal_lm().generate(ids, max_new_tokens=5, do_sample=False)
    assert torch.equal(make_policy(tiny_causal_lm()).model.generate(ids, max_new_tokens=5, do_sample=False), expected)


def test_a_folder_without_a_tokenizer_is_an_error(tmp_path):
    for kind in ("llama", "gpt_neox"):
        tiny_scalar_model(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(ModelError, match=r"tokenizer.*tokenizer\.save_pretrained"):
            load_tokenizer(str(tmp_path / kind), role="reward_model")
