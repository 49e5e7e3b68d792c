"""A DeepSpeed configuration file: what is passed on, what is not used and said, what is refused."""

import json

import pytest

from nearstep import ConfigError, PPOConfig
from nearstep.config.deepspeed import ZeroChoice, zero_choice

# As transformers' documentation has it: what is the program's is left to it.
USUAL = {
    "bf16": {"enabled": "auto"}, "fp16": {"enabled": False}, "gradient_clipping": "auto", "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": 1, "steps_per_print": 2000,
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "zero_optimization": {
        "stage": 3, "overlap_comm": True, "reduce_bucket_size": "auto", "sub_group_size": 1e9,
        "offload_param": {"device": "none"}, "stage3_gather_16bit_weights_on_model_save": True,
    },
}  # fmt: skip


def chosen(folder, asked, **given):
    place = folder / "ds.json"
    place.write_text(json.dumps(asked))
    return zero_choice(PPOConfig(deepspeed=str(place), **given))


def test_a_stage_alone():
    assert zero_choice(PPOConfig()) is None
    assert zero_choice(PPOConfig(zero_stage=2)) == ZeroChoice(2)


def test_sizes_are_passed_on_and_what_is_not_used_is_named(tmp_path):
    found = chosen(tmp_path, USUAL)
    assert found.stage == 3
    assert found.entries == {"overlap_comm": True, "sub_group_size": 1e9}
    assert found.unused == ("steps_per_print", "optimizer", "stage3_gather_16bit_weights_on_model_save")
    assert chosen(tmp_path, USUAL, zero_stage=3) == found


@pytest.mark.parametrize(("changes", "given", "words"), [
    ({"gradient_clipping": 0.5}, {}, "gradient_clipping = 0.5, and max_grad_norm = 1.0"),
    ({"gradient_accumulation_steps": 8}, {}, "gradient_accumulation_steps = 8"),
    ({"train_batch_size": 64}, {}, "train_batch_size = 64"),
    ({"fp16": {"enabled": True}}, {}, "use bfloat16"),
    ({"bf16": {"enabled": True}}, {}, "give dtype = bfloat16"),
    ({"optimizer": {"type": "Adam", "params": {"lr": 1e-5}}}, {}, "lr of an optimizer or schedule"),
    ({"zero_optimization": {"stage": 1}}, {}, "stage = 1: 2 or 3 is needed"),
    ({"zero_optimization": {"stage": 2}}, {"zero_stage": 3}, "stage = 2, and zero_stage = 3"),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, {}, "offload_param to cpu is not built"),
    ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, {}, "zero_quantized_weights is not known"),
    ({"compression_training": {}}, {}, "compression_training is not known here"),
])  # fmt: skip
def test_what_is_not_done_is_refused(tmp_path, changes, given, words):
    with pytest.raises(ConfigError, match="asks for what this run would not do") as refusal:
        chosen(tmp_path, USUAL | changes, **given)
    assert words in str(refusal.value)
    assert str(refusal.value).count("\n  - ") == 1


def test_what_says_the_same_passes(tmp_path):
    same = {"gradient_clipping": 0.5, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 4}
    given = {"max_grad_norm": 0.5, "dtype": "bfloat16", "per_device_train_batch_size": 4}
    assert chosen(tmp_path, USUAL | same, **given).stage == 3


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: no JSON file"):
        zero_choice(PPOConfig(deepspeed=str(tmp_path / "none.json")))


@pytest.mark.parametrize(("given", "words"), [
    ({"zero_stage": 1}, "2 or 3 is needed"),
    ({"zero_stage": 3, "dp_shard": -1}, "give one of them"),
    ({"zero_stage": 3, "dp_replicate": 2}, "give one of them"),
    ({"zero_stage": 2, "critic_trunk": "shared"}, "critic_trunk = separate"),
    ({"deepspeed": "ds.json", "critic_models": 2}, "only one critic"),
    ({"zero_stage": 2, "master_weights": False}, "float32 masters always"),
])  # fmt: skip
def test_settings_that_clash_with_an_engine_for_each_network(given, words):
    with pytest.raises(ConfigError, match=words):
        PPOConfig(**given)
