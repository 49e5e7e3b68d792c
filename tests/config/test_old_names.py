"""Names of other libraries: translated, left out, or refused, and never taken in silence."""

import dataclasses

import pytest

from nearstep.common.errors import ConfigError
from nearstep.config.axes import DIVERGENCES
from nearstep.config.old_names import OF_TRAINING
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import DecoupledPPOConfig, DivergencePPOConfig

FIELDS = {field.name for field in dataclasses.fields(PPOConfig)}


def test_every_old_name_leads_to_a_setting_and_hides_none():
    renamed, retired = OF_TRAINING.renamed, OF_TRAINING.retired
    assert set(renamed.values()) <= FIELDS
    assert not set(renamed) & FIELDS
    assert not set(retired) & (FIELDS | set(renamed))


@pytest.mark.parametrize(
    ("old", "value", "new"),
    [
        ("base_model", "gpt2", "model_name_or_path"),
        ("exp_name", "try", "run_name"),
        ("noptepochs", 2, "num_ppo_epochs"),
        ("nminibatches", 2, "num_mini_batches"),
        ("lr", 1e-6, "learning_rate"),
        ("eps", 1e-5, "adam_epsilon"),
        ("local_micro_batch_size", 4, "per_device_train_batch_size"),
        ("clip_ratio", 0.3, "cliprange"),
        ("max_new_tokens", 128, "response_length"),
        ("max_completion_length", 256, "response_length"),
        ("reward_model_name", "rm", "reward_model_path"),
        ("ref_model", "sft", "ref_model_path"),
    ],
)
def test_an_old_name_sets_its_field_with_a_warning(old, value, new):
    with pytest.warns(UserWarning, match=f"^{old} is called {new} here$"):
        config = PPOConfig(**{old: value})
    assert vars(config)[new] == value


def test_seed_c_reward_names():
    with pytest.warns(UserWarning, match="is called") as notes:
        config = PPOConfig(reward_functions=["a.py:f"], reward_function_weights=[0.5])
    assert config == PPOConfig(reward_funcs=("a.py:f",), reward_weights=(0.5,))
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("old", "value"),
    [
        ("world_size", 2), ("num_total_batches", 10), ("ds3_gather_for_generation", True), ("dataset_num_proc", 4),
        ("fp16", False), ("sanity_check", False), ("mini_batch_size", None), ("max_steps", -1),
        ("stage", "trl_ppo"), ("beta", 0.0),
    ],
)  # fmt: skip
def test_a_harmless_setting_without_counterpart_is_left_out_with_a_warning(old, value):
    with pytest.warns(UserWarning, match=f"^{old} has no effect: "):
        assert PPOConfig(**{old: value}) == PPOConfig()


@pytest.mark.parametrize(
    ("old", "value", "reason"),
    [
        ("fp16", True, "use bf16"),
        ("beta", 0.04, "give kl_coef"),
        ("epsilon", None, "give cliprange"),
        ("stage", "sft", "ppo"),
    ],
)
def test_one_that_would_have_changed_the_run_is_refused_with_the_reason(old, value, reason):
    with pytest.raises(ConfigError, match=f"{old} = .*{reason}"):
        PPOConfig(**{old: value})


def test_a_secret_is_not_repeated():
    with pytest.warns(UserWarning, match="hub_token has no effect") as notes:
        PPOConfig(hub_token="hf_canary")
    assert "canary" not in str(notes[0].message)


def test_seed_b_flags_of_the_1b_run():
    config = PPOConfig(
        learning_rate=3e-6, per_device_train_batch_size=16, gradient_accumulation_steps=4, total_episodes=1_000_000,
        local_rollout_forward_batch_size=16, non_eos_penalty=True, stop_token="eos", penalty_reward_value=-1,
        model_name_or_path="EleutherAI/pythia-1b-deduped", output_dir="models/minimal/ppo",
    )  # fmt: skip
    assert config.non_eos_penalty
    assert config.penalty_reward_value == -1.0


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("tensor-model-parallel-size", 2, "sharded by dp_shard"),
        ("pipeline_model_parallel_size", 4, "sharded by dp_shard"),
        ("sequence_parallel", True, "sharded by dp_shard"),
        ("pp_size", 2, "sharded by dp_shard"),
        ("context-parallel-size", 2, "tokens of long rows by sp_size"),
        ("num-layers-per-virtual-pipeline-stage", 1, "layers are split by tp_size"),
        ("use-distributed-optimizer", True, "in pieces by dp_shard"),
        ("deepspeed_config", "ds.json", "zero_stage = 2 or 3, or deepspeed = a configuration file"),
        ("zero_optimization", 3, "sharded by dp_shard"),
        ("fsdp_config", "f.yaml", "sharded by dp_shard"),
        ("fsdp", "full_shard", "sharded by dp_shard"),
        ("vllm_mode", "colocate", "engine says what samples: vllm in this process"),
        ("vllm_gpu_memory_utilization", 0.3, "engine says what samples: vllm in this process"),
        ("use_unsloth", True, "model_loader = unsloth"),
        ("load_in_8bit", True, "by load_in_4bit"),
        ("bnb_8bit_mode", "all", "by load_in_4bit"),
        ("wandb_project", "mine", "its own environment variables"),
        ("train-iters", 5, "total_episodes = steps × batch_size"),
        ("load", "x", "the policy is model_name_or_path"),
        ("clip_ratio_c", 3.0, "in verl it is the dual clip: give dual_clip; in TRL's DPPO"),
        ("epochs", 3, "num_ppo_epochs for passes over a rollout"),
        ("algorithm", "dpo", "only PPO is here"),
    ],
)
def test_a_name_without_counterpart_is_answered_by_what_it_means(name, value, words):
    with pytest.raises(ConfigError) as refusal:
        PPOConfig(**{name: value})
    assert f"{name} = {value!r}: " in str(refusal.value)
    assert words in str(refusal.value)


@pytest.mark.parametrize("made", [
    lambda **given: PPOConfig(divergence_type="topk_kl", **given), lambda **given: DivergencePPOConfig(**given),
    lambda **given: PPOConfig(**given, trust_region="binary_tv"),
])  # fmt: skip
def test_trls_thresholds_are_those_of_a_divergence_where_the_region_is_one(made):
    with pytest.warns(UserWarning, match="epsilon is called divergence_low here"):
        config = made(epsilon=0.2, epsilon_high=0.28)
    assert (config.divergence_low, config.divergence_high) == (0.2, 0.28)
    assert set(OF_TRAINING.by_region) == set(DIVERGENCES)
    for region in ("clip", "spo"):
        with pytest.raises(ConfigError, match=r"epsilon = .*give cliprange for clip, divergence_low for divergences"):
            PPOConfig(trust_region=region, epsilon=0.2)


@pytest.mark.parametrize(
    ("name", "value"), [("tensor_model_parallel_size", 1), ("vllm_mode", None), ("use_unsloth", False)]
)
def test_a_family_is_harmless_where_it_asks_for_nothing(name, value):
    with pytest.warns(UserWarning, match="has no effect"):
        assert PPOConfig(**{name: value}) == PPOConfig()


def test_no_family_hides_a_setting():
    known = FIELDS | set(OF_TRAINING.renamed)
    assert not [name for name in known for pattern, _ in OF_TRAINING.families if pattern.fullmatch(name)]


@pytest.mark.parametrize("preset", [DivergencePPOConfig, DecoupledPPOConfig])
def test_presets_take_foreign_names(preset):
    with pytest.warns(UserWarning, match="is called"):
        config = preset(divergence_type="topk_kl", vf_lr=1e-4)
    assert (config.trust_region, config.vf_learning_rate) == ("topk_kl", 1e-4)


@pytest.mark.parametrize("name", ["DPPOConfig", "DPPOTrainer"])
def test_a_name_with_two_meanings_is_explained(name):
    with pytest.raises(ImportError, match=r"DecoupledPPOConfig.*DivergencePPOConfig"):
        exec(f"from nearstep import {name}")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("temprature", "temperature"), ("rate_learning", "learning_rate"), ("lora_alfa", "lora_alpha"),
        ("num_epoch", "num_train_epochs"), ("batchsize", "batch_size"), ("gama", "gamma"), ("lamda", "lam"),
    ],
)  # fmt: skip
def test_a_slip_of_the_fingers_is_answered_by_what_was_meant(wrong, meant):
    with pytest.raises(ConfigError, match=f"unknown setting {wrong}; did you mean {meant}"):
        PPOConfig(**{wrong: 1})


@pytest.mark.parametrize("name", ["device", "rewards", "tokenizer", "num_layers", "beta1", "temp_decay", "max_tokens"])
def test_what_is_near_to_nothing_gets_no_guess(name):
    with pytest.raises(ConfigError, match="there is none with a similar name"):
        PPOConfig(**{name: 1})
