"""What accelerate's configuration files come to: settings, with a line about them; contradictions are refused."""

from pathlib import Path

import pytest
import yaml

from nearstep import ConfigError, PPOConfig
from nearstep.config.launched import as_launched

EXAMPLES = Path(__file__).parents[2] / "examples" / "accelerate_configs"
ZERO3 = {
    "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_CONFIG_DS_FIELDS": "zero_stage,mixed_precision",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "none",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "true",
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}  # fmt: skip
# What accelerate 1.15 sets for examples/accelerate_configs/fsdp2.yaml.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_OFFLOAD_PARAMS": "false", "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
    "FSDP_FORWARD_PREFETCH": "false", "FSDP_USE_ORIG_PARAMS": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true", "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip


@pytest.mark.parametrize(("environment", "given", "expected"), [
    (ZERO3, {}, {"zero_stage": 3, "bf16": True}),
    (ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, {}, {"zero_stage": 2, "bf16": True}),
    (ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, {}, {"bf16": True}),
    (ZERO3, {"zero_stage": 3, "bf16": True}, {}),
    (ZERO3 | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "ds.json"}, {}, {"deepspeed": "ds.json", "bf16": True}),
    (FSDP2, {}, {"dp_shard": -1}),
    (FSDP2, {"dp_shard": 2}, {}),
    (FSDP2 | {"FSDP_SHARDING_STRATEGY": "1"}, {}, {"dp_shard": -1}),
    (FSDP2 | {"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, {}, {}),
    (FSDP2 | {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, {}, {"dp_shard": 4}),
    (FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, {"dp_shard": -1, "gradient_checkpointing": True}),
    ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, {"bf16": True}),
])  # fmt: skip
def test_what_is_asked_for_is_taken_where_it_is_open(environment, given, expected, capsys):
    config = PPOConfig(**given)
    assert as_launched(environment, config) == PPOConfig(**{**given, **expected})
    said = capsys.readouterr().err
    assert ("the launcher asks for" in said) == bool(expected)
    assert all(name in said for name in expected)


@pytest.mark.parametrize(("environment", "given", "words"), [
    (ZERO3, {"dp_shard": 2}, "dp_shard = 2 is FSDP2"),
    (ZERO3, {"zero_stage": 2}, "zero_stage = 3, and here zero_stage = 2 is given"),
    (ZERO3 | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, {}, "ZeRO stage 1: 2 and 3 are done here"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed without a stage"),
    (ZERO3 | {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}, {}, "weights on cpu: not built"),
    (ZERO3 | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": "a.json"}, {"deepspeed": "b.json"}, "deepspeed = a.json, and here"),
    (ZERO3 | FSDP2, {}, "DeepSpeed and FSDP at once"),
    (FSDP2, {"zero_stage": 3}, "zero_stage or deepspeed is given"),
    (FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, {}, "FSDP_OFFLOAD_PARAMS"),
    (FSDP2 | {"FSDP_IGNORED_MODULES": "lm_head"}, {}, "whole_roles"),
    (FSDP2 | {"FSDP_SHARDING_STRATEGY": "SOME_SHARD"}, {}, "FSDP_SHARDING_STRATEGY=SOME_SHARD"),
    (ZERO3 | {"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, {}, "max_grad_norm is 1.0"),
])  # fmt: skip
def test_what_cannot_be_both_is_refused(environment, given, words):
    with pytest.raises(ConfigError, match="the launcher asks for what this run would not do") as refusal:
        as_launched(environment, PPOConfig(**given))
    assert words in str(refusal.value)


def test_what_is_not_used_is_said(capsys):
    as_launched(ZERO3, PPOConfig())
    said = capsys.readouterr().err
    assert "not used here of what the launcher set" in said
    assert "ACCELERATE_DEEPSPEED_ZERO3_INIT" in said
    assert "ZERO_STAGE" not in said
    as_launched(FSDP2, PPOConfig())
    assert "FSDP_AUTO_WRAP_POLICY" in capsys.readouterr().err


def test_only_rank_0_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    as_launched(FSDP2, PPOConfig())
    assert capsys.readouterr().err == ""


def test_the_example_files_are_of_the_kinds_that_are_read_here():
    kinds = {file.stem: yaml.safe_load(file.read_text()) for file in EXAMPLES.glob("*.yaml")}
    assert {name: kind["distributed_type"] for name, kind in kinds.items()} == {
        "multi_cpu": "MULTI_GPU", "multi_gpu": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED",
        "deepspeed_zero3": "DEEPSPEED",
    }  # fmt: skip
    assert [kinds[f"deepspeed_zero{stage}"]["deepspeed_config"]["zero_stage"] for stage in (2, 3)] == [2, 3]
