"""Every setting changes something: two short runs that differ in it alone leave different traces."""

import dataclasses
import json
import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from nearstep import ConfigError, DataError, PPOConfig, PPOTrainer, RewardError
from nearstep.assembly import checked_inputs
from nearstep.assembly.engine import engine_settings
from nearstep.common.errors import ModelError
from nearstep.common.trust import Trust
from nearstep.rewards.build import RewardModelOptions, make_sources
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rollout.fallback import EngineWithFallback
from nearstep.scale.torch_backend import torch_backend
from tests.lanes import sampled, slow
from tests.models.odd_folders import code_folder, pickled_folder
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = ["a", "bc", "def", "ghij", "klmno", "pq", "r", "stuvwx"]
REWARD = f"""
import collections
import os

asked = collections.Counter()

def low(completion_ids, **rest):
    return [sum(token < 100 for token in ids) / len(ids) for ids in completion_ids]

def length(completion_ids, **rest):
    return [float(len(ids)) for ids in completion_ids]

def place(completion_ids, **rest):
    return [float(os.getpid() == {os.getpid()}) for _ in completion_ids]

def reluctant(completion_ids, **rest):
    asked.update(tuple(ids) for ids in completion_ids)
    if any(asked[tuple(ids)] < 4 for ids in completion_ids):  # together, alone, and once more is not enough
        raise OSError("not yet")
    return [1.0 for _ in completion_ids]
"""
REGION = """
from dataclasses import dataclass
import torch

@dataclass(frozen=True)
class Nothing:
    top_k: int = 0

    def weight(self, now, old, advantages, rows):
        return torch.zeros_like(advantages)

nothing = Nothing()
"""
LOSS = """
from dataclasses import dataclass
from nearstep import Metrics

@dataclass(frozen=True)
class Likelier:
    coef: float = 0.5
    name: str = "likelier"
    needs_log_normalizers: bool = False

    def count(self, experience):
        return experience.trained.sum()

    def loss(self, micro, now):
        return -now.sampled.sum(), Metrics()
"""
ENGINE = """
from dataclasses import replace
import torch
from nearstep.rollout.transformers_engine import TransformersEngine

class OtherSeed(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        return super().generate(prompts, replace(settings, seed=settings.seed + 1))

class Drifting(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        rollout = super().generate(prompts, settings)
        noise = torch.randn(len(rollout.logprobs), generator=torch.Generator().manual_seed(3))
        return replace(rollout, logprobs=rollout.logprobs + noise / 5)
"""
GROUPS = {"num_generations": 4, "advantage": "group_mean"}
TURNS = {"advantage": "turn_gae", "engine": f"{EXAMPLES}/several_turns.py:TwoTurns"}
READS = {"dataset_name": "{models}/two.jsonl", "critic_columns": ["query"]}
DECOUPLED = {"critic": "decoupled", "vf_learning_rate": 1e-3}
LORA = {"use_peft": True}
GATED = {"num_generations": 4, "gate": "score_range", "gate_low": 0.3, "batch_size": 16}
PARTED = {"critic_models": 2, "num_generations": 4, "total_episodes": 24}  # after an update they are no longer alike
TEACHER = {"teacher_model_path": "{models}/other"}
TEXTS = {"ptx_dataset_name": ["{models}/texts.jsonl"]}
TWO_REWARDS = ["{models}/rewards.py:low", "{models}/rewards.py:length"]
RELUCTANT = {"reward_funcs": "{models}/rewards.py:reluctant"}
RANGED = {"value_head": "bounded", "value_min": -1.0, "value_max": 2.0, "kl_coef": 0.0}
DRIFTING = {"anchor": "recomputed", "engine": "{models}/engine.py:Drifting"}
RECOMPUTED = {"anchor": "recomputed", "correction_high": 1.0, "bf16": True}  # bf16: engine and trainer differ

# setting: (what else is set, the value that must make a difference)
EVALUATED = {"eval_dataset_name": "{models}/fewer.jsonl"}
WITH_BEST = EVALUATED | {"eval_steps": 1, "keep_best": True, "total_episodes": 32}
UNCHANGED = EVALUATED | {"eval_steps": 1, "learning_rate": 0.0, "total_episodes": 32}
RISING = WITH_BEST | {"metric_for_best_model": "objective/kl", "greater_is_better": True, "kl_estimator": "k3"}
EFFECTS: dict[str, tuple[dict[str, object], object]] = {
    "output_dir": ({}, "{folder}/elsewhere"),
    "run_name": ({}, "named"),
    "seed": ({}, 7),
    "model_name_or_path": ({"sft_model_path": None}, "{models}/other"),
    "dtype": ({}, "bfloat16"),
    "bf16": ({}, True),
    "gradient_checkpointing": ({}, True),
    "use_peft": ({}, True),
    "lora_r": (LORA, 2),
    "lora_alpha": (LORA, 3),
    "lora_target_modules": (LORA, ["q_proj"]),
    "lora_modules_to_save": (LORA, ["lm_head"]),
    "use_dora": (LORA, True),
    "use_rslora": (LORA, True),
    "sft_model_path": ({}, "{models}/other"),
    "ref_model_path": ({}, "{models}/other"),
    "value_model_path": ({}, "{models}/scorer"),
    "dataset_name": ({}, "{models}/fewer.jsonl"),
    "dataset_train_split": ({"dataset_name": "{models}/splits"}, "test"),
    "eval_dataset_name": ({}, "{models}/fewer.jsonl"),
    "dataset_weights": ({"dataset_name": ["{models}/prompts.jsonl", "{models}/fewer.jsonl"]}, [1.0, 5.0]),
    "dataset_format": ({"dataset_name": "{models}/two.jsonl"}, "query"),
    "columns": ({"dataset_name": "{models}/two.jsonl"}, ["prompt=query"]),
    "on_bad_row": ({"dataset_name": "{models}/bad.jsonl"}, "drop"),
    "prompt_type": ({}, "chat"),
    "chat_template_kwargs": ({"prompt_type": "{models}/thinking.jinja"}, {"thinking": False}),
    "num_eval_rows": ({}, 2),
    "shuffle_dataset": ({}, False),
    "streaming": ({}, True),
    "shuffle_buffer": ({"streaming": True}, 3),
    "sampler": ({"total_episodes": 24}, "difficulty"),
    "pool_borders": ({"sampler": "difficulty", "total_episodes": 24}, [0.01, 0.02]),
    "pool_weights": ({"sampler": "difficulty", "total_episodes": 24, "batch_size": 4}, [4.0, 1.0, 4.0, 0.0]),
    "gate": ({"num_generations": 4}, "score_range"),
    "gate_low": ({"num_generations": 4, "gate": "score_range"}, 0.5),
    "gate_high": ({"num_generations": 4, "gate": "score_range"}, 0.3),
    "gate_share": ({"gate": "value_gap", "gate_low": 0.0}, 0.5),
    "gate_fill": (GATED, "replace"),
    "refill_rounds": (GATED | {"gate_fill": "refill"}, 1),
    "dataset_test_split": ({"dataset_name": "{models}/splits"}, "test"),
    "max_prompt_length": ({"on_long_prompt": "cut_left"}, 2),
    "on_long_prompt": ({"max_prompt_length": 3, "on_long_prompt": "drop"}, "cut_left"),
    "response_length": ({}, 5),
    "max_length": ({}, 7),
    "do_sample": ({}, False),
    "temperature": ({}, 0.5),
    "top_p": ({}, 0.5),
    "top_k": ({}, 3),
    "engine": ({}, "{models}/engine.py:OtherSeed"),
    "stop_token": ({}, "a"),
    "stop_token_id": ({}, [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    "num_generations": ({}, 4),
    "reward_model_path": ({}, "{models}/scorer"),
    "reward_funcs": ({}, "{models}/rewards.py:length"),
    "reward_weights": ({"reward_funcs": ["{models}/rewards.py:low", "{models}/rewards.py:length"]}, [1.0, 0.5]),
    "reward_workers": ({"reward_funcs": "{models}/rewards.py:place"}, 1),
    "reward_timeout_seconds": ({"reward_funcs": "{models}/rewards.py:place"}, 100.0),
    "on_reward_error": (RELUCTANT, "drop"),
    "reward_retries": (RELUCTANT | {"on_reward_error": "retry", "reward_retries": 1}, 2),
    "missing_eos_penalty": ({}, 3.0),
    "non_eos_penalty": ({}, True),
    "penalty_reward_value": ({"non_eos_penalty": True}, -5.0),
    "normalize_scores": ({"whiten_advantages": False}, "scale"),
    "normalize_scores_apart": (
        {
            "whiten_advantages": False,
            "normalize_scores": "scale",
            "reward_funcs": ["{models}/rewards.py:low", "{models}/rewards.py:length"],
        },
        True,
    ),
    "reward_clip": ({}, 0.3),
    "overlong_buffer": ({}, 4),
    "overlong_penalty": ({"overlong_buffer": 4}, 3.0),
    "kl_coef": ({}, 0.5),
    "kl_estimator": ({}, "k3"),
    "kl_in": ({"kl_estimator": "k3"}, "loss"),
    "kl_target": ({}, 0.01),
    "measure_kl": ({"kl_coef": 0.0}, True),
    "kl_controller": ({"kl_target": 0.01}, "fixed"),
    "kl_coef_final": ({}, 0.5),
    "kl_schedule": ({"kl_coef_final": 0.5, "total_episodes": 32}, "cosine"),
    "kl_horizon": ({"kl_target": 0.01}, 16),
    "score_position": ({"stop_token_id": list(range(5, 60))}, "after_eos"),
    "whiten_rewards": ({}, True),
    "whiten_advantages": ({}, False),
    "gamma": ({}, 0.5),
    "lam": ({}, 0.5),
    "lam_length_alpha": ({}, 0.5),
    "lam_critic": ({}, 0.5),
    "bootstrap_truncated": ({}, True),
    "advantage": ({"num_generations": 4}, "leave_one_out"),
    "turn_gamma": (TURNS, 0.1),
    "turn_lam": (TURNS, 0.1),
    "num_ppo_epochs": ({}, 1),
    "num_mini_batches": ({}, 2),
    "trust_region": ({}, "{models}/region.py:nothing"),
    "ratio_level": ({"cliprange": 1e-3}, "row"),
    "cliprange": ({}, 0.01),
    "cliprange_high": ({}, 0.01),
    "dual_clip": ({}, 1.01),
    "region_threshold": ({"trust_region": "spo"}, 0.01),
    "region_low": ({"trust_region": "dis"}, 0.999),
    "region_high": ({"trust_region": "cispo"}, 1.001),
    "sapo_tau": ({"trust_region": "sapo"}, 50.0),
    "sapo_tau_negative": ({"trust_region": "sapo"}, 50.0),
    "cppo_floor": ({"trust_region": "cppo", "region_threshold": 1e-4}, 0.0),
    "sat_share": ({"trust_region": "sat", "cliprange": 1e-3}, 0.9),
    "sat_contraction": ({"trust_region": "sat", "cliprange": 1e-3}, 0.0),
    "divergence_low": ({"trust_region": "binary_kl"}, 1e-6),
    "divergence_high": ({"trust_region": "binary_kl"}, 1e-6),
    "divergence_top_k": ({"trust_region": "topk_tv", "divergence_low": 1e-3, "divergence_high": 1e-3}, 1),
    "anchor": ({"bf16": True}, "recomputed"),
    "correction": (DRIFTING, "seq_mask_tis"),
    "correction_level": (DRIFTING | {"correction_high": 1.1}, "row"),
    "correction_action": ({"anchor": "recomputed", "correction_low": 1.1}, "mask"),
    "correction_measure": (RECOMPUTED | {"correction_action": "mask", "correction_high": 1e-9}, "k2"),
    "correction_low": (RECOMPUTED | {"correction_high": 9.0}, 2.0),
    "correction_high": (RECOMPUTED, 0.5),
    "entropy_coef": ({}, 0.5),
    "loss_aggregation": ({"optim": "sgd", "stop_token_id": list(range(5, 60))}, "sequence_mean"),
    "mask_truncated_completions": ({"stop_token_id": list(range(5, 60))}, True),
    "early_stop_kl": ({"num_ppo_epochs": 4}, 1e-6),
    "ratio_cap": ({}, 0.9),
    "auxiliary_losses": ({}, ["{models}/loss.py:Likelier"]),
    "nll_coef": ({"nll_min_score": 0.3}, 0.5),
    "nll_min_score": ({"nll_coef": 0.5}, 0.3),
    "nll_reward": ({"nll_coef": 0.5, "nll_min_score": 6.1, "reward_funcs": TWO_REWARDS}, "length"),
    "z_loss_coef": ({}, 0.1),
    "teacher_model_path": ({}, "{models}/other"),
    "teacher_coef": (TEACHER, 0.1),
    "teacher_in": (TEACHER, "loss"),
    "ptx_dataset_name": ({}, ["{models}/texts.jsonl"]),
    "ptx_dataset_split": ({"ptx_dataset_name": ["{models}/texts"]}, "test"),
    "ptx_text_column": (TEXTS, "body"),
    "ptx_coef": (TEXTS, 0.5),
    "ptx_batch_size": (TEXTS, 2),
    "ptx_row_length": (TEXTS, 3),
    "critic": ({}, "decoupled"),
    "critic_schedule": ({}, "decoupled"),
    "critic_trunk": ({}, "shared"),
    "cliprange_value": ({}, 1e-3),
    "value_head": ({}, "quantile"),
    "value_min": (RANGED, -3.0),
    "value_max": (RANGED, 3.0),
    "value_bins": (RANGED | {"value_head": "hl_gauss"}, 7),
    "value_sigma": (RANGED | {"value_head": "hl_gauss"}, 3.0),
    "value_quantiles": ({"value_head": "quantile"}, 3),
    "value_huber": ({"value_head": "quantile"}, 0.5),
    "value_members": ({"value_head": "ensemble", "num_generations": 4}, 3),
    "vf_frozen": ({}, ["*self_attn*"]),
    "critic_models": ({"num_generations": 4}, 2),
    "advantage_mask_share": (PARTED, 0.3),
    "entropy_mask_share": (PARTED | {"entropy_coef": 0.5}, 0.3),
    "vf_coef": ({}, 1.0),
    "vf_learning_rate": ({}, 1e-4),
    "num_vf_epochs": (DECOUPLED, 3),
    "vf_update_frequency": (DECOUPLED | {"total_episodes": 24}, 3),
    "vf_warmup_updates": ({}, 1),
    "vf_warmup_lam": ({"vf_warmup_updates": 1}, 0.5),
    "vf_reweight": (DECOUPLED, "ratio"),
    "vf_reweight_low": (DECOUPLED | {"vf_reweight": "ratio"}, 1.0),
    "vf_reweight_high": (DECOUPLED | {"vf_reweight": "ratio"}, 1.0),
    "vf_warmup_until": ({"vf_warmup_updates": 2, "total_episodes": 24}, -50.0),
    "vf_lr_scheduler_type": ({}, "linear"),
    "vf_lr_warmup_steps": ({"lr_scheduler_type": "linear"}, 1),
    "baseline_fallback": ({"whiten_advantages": False}, "batch_mean"),
    "critic_columns": ({"dataset_name": "{models}/two.jsonl"}, ["query"]),
    "critic_template": (READS, "{{query}}{{prompt}}"),
    "critic_text_tokens": (READS, 2),
    "total_episodes": ({}, 24),
    "num_train_epochs": ({"total_episodes": None, "num_train_epochs": 2.0}, 1.0),
    "per_device_train_batch_size": ({"batch_size": 8}, 3),
    "gradient_accumulation_steps": ({"per_device_train_batch_size": 4, "batch_size": None}, 2),
    "batch_size": ({}, 4),
    "max_tokens_per_microbatch": ({}, 20),
    "local_rollout_forward_batch_size": ({}, 3),
    "learning_rate": ({}, 1e-3),
    "lr_scheduler_type": ({}, "linear"),
    "warmup_steps": ({"lr_scheduler_type": "linear"}, 1),
    "optim": ({}, "sgd"),
    "master_weights": ({"dtype": "bfloat16"}, False),
    "weight_decay": ({}, 0.5),
    "adam_beta1": ({}, 0.5),
    "adam_beta2": ({}, 0.5),
    "adam_epsilon": ({}, 1e-2),
    "max_grad_norm": ({"optim": "sgd"}, 0.01),
    "logging_steps": ({}, 2),
    "log_style": ({}, "two_line"),
    "report_to": ({}, "tensorboard"),
    "num_sample_generations": ({}, 2),
    "log_rollouts": ({}, True),
    "eval_steps": ({"eval_dataset_name": "{models}/fewer.jsonl"}, 1),
    "eval_on_start": (EVALUATED, True),
    "eval_temperature": (EVALUATED, 2.0),
    "eval_num_generations": (EVALUATED | {"eval_temperature": 2.0}, 2),
    "eval_seed": ({"num_eval_rows": 3}, 7),
    "eval_reward_model_path": (EVALUATED, "{models}/scorer"),
    "eval_reward_funcs": (EVALUATED, "{models}/rewards.py:length"),
    "eval_reference_column": ({"eval_dataset_name": "{models}/two.jsonl"}, "query"),
    "metric_for_best_model": (WITH_BEST | {"greater_is_better": True}, "train/response/length_mean"),
    "greater_is_better": (WITH_BEST, False),
    "early_stopping_patience": (UNCHANGED, 1),
    "early_stopping_threshold": (RISING | {"early_stopping_patience": 1}, 100.0),
    "stop_kl": ({"total_episodes": 32, "kl_estimator": "k3"}, 1e-12),
    "stop_score": ({}, 0.001),
    "stop_patience": ({"stop_score": 0.001}, 2),
    "save_steps": ({}, 1),
    "save_total_limit": ({"save_steps": 1}, 1),
    "keep_steps": ({}, 2),
    "keep_best": ({"eval_dataset_name": "{models}/fewer.jsonl", "eval_steps": 1}, True),
    "save_minutes": ({}, 1e-6),
    "dump_rollouts": ({}, "{folder}/rollouts"),
    "record_token_rows": ({}, 0),
    "kl_exact_rows": ({}, 2),
    "health_checks": ({}, False),
}
# These have a test of their own below, for what they do lies outside a run on this machine.
OF_SERVERS: dict[str, object] = {
    "reward_url": "http://127.0.0.1:1/other", "reward_url_token_env": "A_TOKEN", "reward_url_timeout_seconds": 1.0,
    "reward_url_retries": 0, "reward_url_batch_size": 3,
}  # fmt: skip
# Of engines: shown in tests/rollout/vllm and, by the real ones, in tests/engines.
OF_ENGINES: dict[str, object] = {
    "engine_url": ["http://127.0.0.1:2"], "engine_timeout_seconds": 1.0, "engine_retries": 0,
    "engine_fallback": "transformers", "engine_weights_dir": "elsewhere",
}  # fmt: skip
APART = {"use_cpu", "engine_cache_gib", "random_reward_head", "decode_graphs", "trust_remote_code",
         "allow_pickled_weights", "dataset_config", "push_to_hub", "ptx_dataset_config", "hub_model_id",
         "rollouts_max_mib", *OF_SERVERS, *OF_ENGINES}  # fmt: skip
ELSEWHERE = {
    "resume": "checkpoint/test_resume.py", "fork_from": "cli/test_fork_and_replay.py",
    "on_save_error": "checkpoint/test_faults.py", "max_broken_updates": "training/test_update.py",
    "wait_timeout_seconds": "common/test_waiting.py",
    "replay_rollouts": "training/test_replay.py",
    "vf_pretrain_rollouts": "training/test_pretraining.py", "vf_pretrain_epochs": "training/test_pretraining.py",
    "correction_veto": "training/test_correction.py",
    **dict.fromkeys(
        ("max_staleness", "staleness_window", "on_stale", "staleness_chunk"), "trainer/test_generation_process.py"
    ),
    "zero_stage": "config/test_deepspeed.py", "deepspeed": "config/test_deepspeed.py",
    "reward_trunk": "training/test_one_base.py",
    **dict.fromkeys(("vf_lora_r", "vf_lora_alpha", "vf_lora_target_modules"), "training/test_one_base.py"),
    "model_loader": "unsloth/test_stand_in.py",
    "load_in_4bit": "training/test_memory.py", "bnb_4bit_quant_type": "training/test_memory.py",
    "use_bnb_nested_quant": "training/test_memory.py", "offload_roles": "training/test_memory.py",
    "gradient_checkpointing_every": "training/test_memory.py",
    "dp_shard": "scale/test_degrees.py", "dp_replicate": "scale/test_degrees.py", "whole_roles": "scale/test_pieces.py",
    "tp_size": "scale/test_degrees.py", "ep_size": "scale/test_degrees.py",
    "sp_size": "scale/test_turns.py",
    "sharded_checkpoints": "checkpoint/test_piece_saves.py", "max_shard_size": "checkpoint/test_piece_saves.py",
}  # fmt: skip
BASE: dict[str, object] = {
    "model_name_or_path": "{models}/policy", "dataset_name": "{models}/prompts.jsonl",
    "reward_funcs": "{models}/rewards.py:low", "output_dir": "{folder}", "total_episodes": 16,
    "per_device_train_batch_size": 8, "response_length": 6, "temperature": 1.0, "learning_rate": 1e-2,
    "lr_scheduler_type": "constant", "num_ppo_epochs": 2, "num_sample_generations": 0, "log_rollouts": False,
    "use_cpu": True,
}  # fmt: skip


def test_every_setting_has_its_effect_shown():
    assert {field.name for field in dataclasses.fields(PPOConfig)} == set(EFFECTS) | APART | set(ELSEWHERE)
    assert all(name in (Path(__file__).parents[1] / file).read_text() for name, file in ELSEWHERE.items())
    assert all(f"test_{name}" in globals() for name in APART - set(OF_SERVERS) - set(OF_ENGINES))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in (
        ("policy", tiny_causal_lm()), ("other", tiny_causal_lm(seed=5)), ("scorer", tiny_scalar_model()),
    ):  # fmt: skip
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    (folder / "rewards.py").write_text(REWARD)
    (folder / "region.py").write_text(REGION)
    (folder / "engine.py").write_text(ENGINE)
    (folder / "loss.py").write_text(LOSS)
    (folder / "thinking.jinja").write_text("{{ messages[0].content }}{% if not thinking | default(true) %}!{% endif %}")
    (folder / "splits").mkdir()
    for file, texts in (
        ("prompts.jsonl", PROMPTS), ("fewer.jsonl", PROMPTS[:3]),
        ("splits/train.jsonl", PROMPTS), ("splits/test.jsonl", PROMPTS[:3]),
    ):  # fmt: skip
        (folder / file).write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
    texts = [{"text": text * 3, "body": text} for text in PROMPTS]
    (folder / "texts").mkdir()
    for file, rows in (("texts.jsonl", texts), ("texts/train.jsonl", texts), ("texts/test.jsonl", texts[:2])):
        (folder / file).write_text("\n".join(map(json.dumps, rows)))
    two = [{"prompt": text, "query": text * 2} for text in PROMPTS]
    (folder / "two.jsonl").write_text("\n".join(map(json.dumps, two)))
    (folder / "bad.jsonl").write_text("\n".join(map(json.dumps, [*two, {"prompt": ""}])))
    return folder


@dataclasses.dataclass(frozen=True)
class Traces:
    """What a run leaves: weights, metrics without times, names of files, printed lines, calls of every layer."""

    weights: tuple[float, ...]
    metrics: tuple[dict[str, float], ...]
    files: frozenset[str]
    printed: str
    calls: Counter[tuple[str, int]]


@pytest.fixture(scope="module")
def run(models, tmp_path_factory):
    """Run settings and return their traces; equal settings run once."""
    known: dict[str, Traces] = {}

    def traces(settings, capsys, *, again=False):
        key = json.dumps(settings, sort_keys=True)
        if again or key not in known:
            known[key] = _traces(settings, models, tmp_path_factory.mktemp("run"), capsys)
        return known[key]

    return traces


def _traces(settings, models, folder, capsys) -> Traces:
    def place(value):
        if isinstance(value, list):
            return [place(entry) for entry in value]
        return value.format(models=models, folder=folder) if isinstance(value, str) else value

    calls: Counter[tuple[str, int]] = Counter()
    hook = register_module_forward_hook(
        lambda module, inputs, _: calls.update([(type(module).__name__, inputs[0].numel())]) if inputs else None
    )
    capsys.readouterr()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = PPOTrainer(args=PPOConfig(**{name: place(value) for name, value in settings.items()}))
            trainer.train()
    except (DataError, RewardError) as error:
        return Traces((), (), frozenset(), str(error).partition("(")[0], Counter())
    finally:
        hook.remove()
    networks = [trainer.model] + ([] if trainer.value_model is None else [trainer.value_model])
    weights = [float(weight.double().sum()) for network in networks for weight in network.state_dict().values()]
    out = Path(trainer.recipe.config.output_dir)
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    clocks = ("time/", "seconds", "eps", "tokens_per_second")
    return Traces(
        tuple(weights),
        tuple({name: value for name, value in entry.items() if not name.startswith(clocks)} for entry in metrics),
        frozenset(str(path.relative_to(folder)).split("tfevents")[0] for path in folder.rglob("*")),
        "\n".join(
            [
                *(line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("iter")),
                *(
                    line.replace(out.name, "")
                    for line in (out / "policy" / "README.md").read_text().splitlines()
                    if line.startswith("# ")
                ),
            ]
        ),
        calls,
    )


def test_the_same_settings_leave_the_same_traces(run, capsys):
    """Or any difference below would show nothing."""
    assert run(BASE, capsys) == run(BASE, capsys, again=True)


@pytest.mark.parametrize("name", sampled(EFFECTS, 24))
def test_setting_changes_something(name, run, capsys):
    others, value = EFFECTS[name]
    before = {**BASE, **others}
    assert before.get(name) != value
    assert run(before, capsys) != run({**before, name: value}, capsys)


def test_rollouts_max_mib(models, tmp_path, capsys):
    settings = {**BASE, "log_rollouts": True, "rollouts_max_mib": 0.001}
    _traces(settings, models, tmp_path, capsys)
    records = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert {record["update"] for record in records} == {1}  # of two


@pytest.mark.parametrize("name", OF_SERVERS)
def test_setting_of_reward_servers(name, monkeypatch):
    """Each reaches the server's description; what that does is shown in tests/rewards/test_remote.py."""
    monkeypatch.setenv("A_TOKEN", "secret")
    loading = RewardModelOptions(torch.float32, Trust(), False, 1024, lambda model: model, 0)

    def server(**changes):
        config = PPOConfig(**{"reward_url": "http://127.0.0.1:1/score", **changes})
        source = make_sources(config, [], byte_tokenizer, TokenizerIdentity("", None), loading)[0]
        return source.endpoint, source.batch_size

    assert server() == server()
    assert server() != server(**{name: OF_SERVERS[name]})


@pytest.mark.parametrize("name", OF_ENGINES)
def test_setting_of_engine_servers(name, models, tmp_path):
    """Each reaches the engine; what that does is shown in tests/rollout/vllm/test_server.py."""
    settings = {
        "model_name_or_path": f"{models}/policy", "dataset_name": f"{models}/prompts.jsonl", "response_length": 4,
        "reward_funcs": f"{models}/rewards.py:low", "output_dir": str(tmp_path / "out"), "use_cpu": True,
        "engine": "vllm_server", "engine_url": ["http://127.0.0.1:1"],
    }  # fmt: skip

    def engine(**changes):
        found = PPOTrainer(args=PPOConfig(**{**settings, **changes})).recipe.engine
        return repr(found.first.settings if isinstance(found, EngineWithFallback) else found.settings), type(found)

    assert engine() == engine()
    assert engine() != engine(**{name: OF_ENGINES[name]})


def test_engine_cache_gib(tmp_path):
    """It reaches vLLM's settings; in tests/engines it is the memory of the real one."""
    backend = torch_backend(use_cpu=True)
    found = [engine_settings(PPOConfig(engine="vllm", engine_cache_gib=gib), backend).vllm for gib in (0.5, 2.0)]
    assert [each.cache_gib for each in found] == [0.5, 2.0]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"engine": "vllm"}, "engine = vllm runs in one process, and there are 2"),
        (
            {"engine": "vllm_server", "engine_url": ["http://a:1", "http://b:1", "http://c:1"]},
            r"names 3 servers for 2 process\(es\)",
        ),
    ],
)
def test_engines_that_do_not_take_so_many_processes_are_refused(settings, what):
    backend = dataclasses.replace(torch_backend(use_cpu=True), world_size=2)
    with pytest.raises(ConfigError, match=what):
        engine_settings(PPOConfig(**settings), backend)


def test_use_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert torch_backend(use_cpu=False).device.type == "cuda"
    assert torch_backend(use_cpu=True).device.type == "cpu"


@pytest.mark.parametrize("asked", [False, True])
def test_decode_graphs(asked, models, tmp_path, monkeypatch):
    """With a GPU it reaches the engine, without one it is refused before any weight."""
    config = PPOConfig(
        model_name_or_path=f"{models}/policy", dataset_name=f"{models}/prompts.jsonl", decode_graphs=asked,
        reward_funcs=f"{models}/rewards.py:low", output_dir=str(tmp_path / "out"), response_length=4,
    )  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if asked:
        with pytest.raises(ConfigError, match="decode_graphs = true replays CUDA graphs, and the policy is on the cpu"):
            PPOTrainer(args=config)
    monkeypatch.setattr(checked_inputs, "require_gpu", lambda device: None)
    recipe = PPOTrainer(args=config).recipe
    assert recipe.engine.settings.decode_graphs == asked


def test_trust_remote_code(models, tmp_path):
    """Only the code of models that it names is run."""
    bringing = code_folder(models / "policy", tmp_path / "bringing")
    texts = {"model_name_or_path": str(bringing), "dataset_name": str(models / "prompts.jsonl")}
    texts |= {"reward_funcs": f"{models}/rewards.py:low", "output_dir": str(tmp_path / "out")}
    texts["value_model_path"] = str(models / "scorer")
    for not_named in (None, str(models / "policy")):
        with pytest.raises(ModelError, match=r"points to Python code of its own \(own\."):
            PPOTrainer(args=PPOConfig(**texts, trust_remote_code=not_named))
    assert not (bringing / "ran").exists()
    PPOTrainer(args=PPOConfig(**texts, trust_remote_code=False))
    assert not (bringing / "ran").exists()
    PPOTrainer(args=PPOConfig(**texts, trust_remote_code=True))
    assert (bringing / "ran").exists()


def test_allow_pickled_weights(models, tmp_path):
    folder = pickled_folder(models / "policy", tmp_path / "pickled")
    texts = {"model_name_or_path": str(folder), "dataset_name": str(models / "prompts.jsonl")}
    texts |= {"reward_funcs": f"{models}/rewards.py:low", "output_dir": str(tmp_path / "out")}
    with pytest.raises(ModelError, match=r"pytorch_model.bin' are a pickle"):
        PPOTrainer(args=PPOConfig(**texts))
    PPOTrainer(args=PPOConfig(**texts, allow_pickled_weights=True))


def test_random_reward_head(models, tmp_path):
    """A policy as reward model is refused, and the refusal names the way to a first try."""
    texts = {"model_name_or_path": f"{models}/policy", "dataset_name": f"{models}/prompts.jsonl"}
    texts |= {"reward_model_path": f"{models}/policy", "output_dir": str(tmp_path / "out"), "use_cpu": True}
    with pytest.raises(ModelError, match="--reward_funcs length, or --random_reward_head: its scores mean nothing"):
        PPOTrainer(args=PPOConfig(**texts))
    recipe = PPOTrainer(args=PPOConfig(**texts, random_reward_head=True)).recipe
    assert "got a random one (random_reward_head): its scores mean nothing" in recipe.introduction
    trained = texts | {"reward_model_path": f"{models}/scorer", "random_reward_head": True}
    assert "random_reward_head changed nothing" in PPOTrainer(args=PPOConfig(**trained)).recipe.introduction


def test_dataset_config(models, tmp_path, monkeypatch):
    asked_of_the_hub("dataset", models, tmp_path, monkeypatch)


def test_ptx_dataset_config(models, tmp_path, monkeypatch):
    asked_of_the_hub("ptx_dataset", models, tmp_path, monkeypatch)


def asked_of_the_hub(setting, models, tmp_path, monkeypatch):
    """It names a part of a hub data set, and is handed to the library that loads those."""
    import datasets

    asked = []

    def recording(place, config=None, **options):
        asked.append((place, config))
        return datasets.Dataset.from_list([{"prompt": text, "text": text} for text in PROMPTS])

    monkeypatch.setattr(datasets, "load_dataset", recording)
    for name in (None, "part"):
        settings = {**BASE, f"{setting}_name": "someone/prompts", f"{setting}_config": name}
        placed = {
            key: value.format(models=models, folder=tmp_path) if isinstance(value, str) else value
            for key, value in settings.items()
        }
        PPOTrainer(args=PPOConfig(**placed))
    assert asked == [("someone/prompts", None), ("someone/prompts", "part")]


@pytest.mark.parametrize(("changes", "uploads"), [
    slow(({}, [])), slow(({"push_to_hub": True}, ["run"])),
    ({"push_to_hub": True, "hub_model_id": "me/policy"}, ["me/policy"]),
])  # fmt: skip
def test_push_to_hub(changes, uploads, models, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("nearstep.trainer.push_to_hub", lambda folder, repository: found.append(repository))
    monkeypatch.setattr("nearstep.assembly.checked_inputs.check_hub", lambda repository: None)
    placed = {
        key: value.format(models=models, folder=tmp_path / "run") if isinstance(value, str) else value
        for key, value in {**BASE, **changes}.items()
    }
    PPOTrainer(args=PPOConfig(**placed)).train()
    assert found == uploads


test_hub_model_id = test_push_to_hub
