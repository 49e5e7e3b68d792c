"""A folder that is streamed holds what save_pretrained writes, and asks for a layer at a time."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from nearstep.models.streamed_saving import stream_model
from tests.tiny import byte_tokenizer, tiny_causal_lm


def mixture():
    """Its experts are one matrix here and many in a folder."""
    config = Qwen3MoeConfig(
        vocab_size=258, hidden_size=16, intermediate_size=24, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=4, num_experts_per_tok=2,
        eos_token_id=256, pad_token_id=257, bos_token_id=None,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config)


MODELS = {"llama": tiny_causal_lm, "tied": lambda: tiny_causal_lm("gpt2"), "mixture": mixture,
          "narrow": lambda: tiny_causal_lm(dtype=torch.bfloat16)}  # fmt: skip


def without_weights(model):
    memo = {id(weight): torch.nn.Parameter(torch.empty_like(weight, device="meta")) for weight in model.parameters()}
    return copy.deepcopy(model, memo)


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_folder_of_save_pretrained_in_small_files(tmp_path, kind):
    model, limit = MODELS[kind](), 20_000
    weights, asked = model.state_dict(), []

    def read(names):
        asked.append([name for name in names if name])
        return {name: weights[name].float() for name in names}  # as masters are

    outline = without_weights(model)
    stream_model(tmp_path / "a", outline, outline.state_dict(), read, byte_tokenizer(), "card", shard_bytes=limit)
    model.save_pretrained(tmp_path / "b")
    files = sorted((tmp_path / "a").glob("*.safetensors"))
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected = load_file(tmp_path / "b" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    assert [file.name for file in files] == [
        f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))
    ]
    assert all(
        sum(each.nbytes for each in load_file(file).values()) <= limit or len(load_file(file)) == 1 for file in files
    )
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "a" / name).read_text()) == json.loads((tmp_path / "b" / name).read_text())
    layers = [{name.split(".")[2] for name in names if "layers." in name or ".h." in name} for names in asked]
    assert max(map(len, layers)) == 1
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype="auto")
    assert all(torch.equal(opened.state_dict()[name], tensor) for name, tensor in weights.items())


def test_a_model_that_fits_one_file_has_one(tmp_path):
    model = tiny_causal_lm()
    weights = model.state_dict()
    stream_model(tmp_path / "a", model, weights, lambda names: {}, byte_tokenizer(), "card", shard_bytes=10**9)
    assert [file.name for file in (tmp_path / "a").glob("*.safetensors*")] == ["model.safetensors"]
