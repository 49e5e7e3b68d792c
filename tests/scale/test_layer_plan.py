"""Which weights are divided over processes that compute together, and what cannot be divided."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForTokenClassification,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
)

from nearstep.common.errors import ModelError
from nearstep.scale.layer_plan import LayerPlan
from tests.scale.tensor_varieties import SIZES
from tests.tiny import tiny_causal_lm

ATTENTION = {f"self_attn.{name}_proj": "colwise" for name in "qkv"} | {"self_attn.o_proj": "rowwise"}
MLP = {"mlp.gate_proj": "colwise", "mlp.up_proj": "colwise", "mlp.down_proj": "rowwise"}


def llama(kind=LlamaForCausalLM, **changes):
    return kind(LlamaConfig(**{**SIZES, "num_hidden_layers": 1, **changes}))


def divided(model, processes=2, *, experts=False, role="policy"):
    plan = LayerPlan.of([(role, model)], processes, experts=experts)
    names = {module: name for name, module in model.named_modules()}
    assert {names[module] for module in plan.weights if plan.weights[module]} <= {names[each] for each in plan.hooks}
    return {names[module]: style for module, style in plan.hooks.items()}


def test_a_family_is_divided_by_its_own_plan():
    of_layer = {f"model.layers.0.{name}": style for name, style in (ATTENTION | MLP).items()}
    ends = {"model.embed_tokens": "embedding_rowwise", "lm_head": "colwise_gather_output"}
    assert divided(llama()) == of_layer | ends
    assert divided(llama(LlamaForTokenClassification)) == of_layer | {"model.embed_tokens": "embedding_rowwise"}


def test_tied_ends_are_divided_alike_or_not_at_all():
    tied = llama(tie_word_embeddings=True)
    assert {"model.embed_tokens", "lm_head"} <= divided(tied).keys()
    tied.tp_plan = {name: style for name, style in tied.tp_plan.items() if name != "lm_head"}
    assert "model.embed_tokens" not in divided(tied)


def test_of_lora_the_matrix_on_the_divided_side_is_divided():
    found = divided(get_peft_model(llama(), LoraConfig(target_modules=["q_proj", "down_proj"], r=2)))
    layer = "base_model.model.model.layers.0"
    of_q, of_down = f"{layer}.self_attn.q_proj", f"{layer}.mlp.down_proj"
    assert found[f"{of_q}.base_layer"] == found[f"{of_q}.lora_B.default"] == "colwise"
    assert found[f"{of_down}.base_layer"] == found[f"{of_down}.lora_A.default"] == "rowwise"
    assert not {name for name in found if name.endswith(("q_proj.lora_A.default", "down_proj.lora_B.default"))}


def test_a_layer_that_is_trained_in_a_copy_stays_whole():
    adapted = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2, modules_to_save=["lm_head"]))
    assert not {name for name in divided(adapted) if "lm_head" in name}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny_causal_lm("gpt2"), "policy: tp_size = 2: GPT2LMHeadModel brings no plan .* give dp_shard"),
        (lambda: torch.nn.Linear(2, 2), "policy: tp_size = 2: Linear brings no plan"),
        (lambda: llama(num_key_value_heads=1), "tp_size = 2 does not divide its 1 key-value heads"),
        (
            lambda: get_peft_model(llama(), LoraConfig(target_modules=["q_proj"], r=2, use_dora=True)),
            "of adapters only LoRA is divided, without use_dora",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(make, words):
    with pytest.raises(ModelError, match=words):
        divided(make())


@pytest.mark.parametrize(
    "model",
    [
        OlmoeForCausalLM(OlmoeConfig(**SIZES, num_experts=3, num_experts_per_tok=1)),
        MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=3, num_experts_per_tok=1)),
    ],
    ids=["olmoe", "mixtral"],
)
def test_experts_that_do_not_come_out_even_are_refused(model):
    with pytest.raises(ModelError, match="ep_size = 2 does not divide its 3 experts"):
        divided(model, experts=True)


def test_a_dense_network_beside_a_mixture_is_divided_as_without():
    with pytest.raises(ModelError, match="ep_size = 2: LlamaForCausalLM brings no plan for experts"):
        divided(llama(), experts=True)
    assert divided(llama(), experts=True, role="value") == divided(llama())
