"""Which names other libraries gave to our settings, and which of their settings have no counterpart here.

Sources: TRL 0.7 to 1.12, transformers' TrainingArguments, the N+ reproduction (arXiv 2403.17031), AlignTune,
MindSpeed-LLM's trl_ppo, OpenRLHF.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from nearstep.config.retired_names import (
    COMPUTED,
    FAMILIES,
    IN_PLACE,
    LENGTH,
    OWN_ENGINE,
    PEFT,
    QUANTISED,
    SHARDED,
    Retired,
)

DPPO = (
    "the name has two meanings: `decoupled` (DecoupledPPOConfig) puts the critic on an optimizer of its own, "
    "`divergence` (DivergencePPOConfig) replaces the clip by a divergence; both are trained by `ppo` (PPOTrainer)"
)

RENAMED: dict[str, str] = {
    # Run
    "exp_name": "run_name",
    "no_cuda": "use_cpu",
    # Models
    "model": "model_name_or_path",
    "base_model_name": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_path": "model_name_or_path",
    "pretrain": "model_name_or_path",
    "base_model": "model_name_or_path",
    "sft_model": "sft_model_path",
    "ref_model": "ref_model_path",
    "ref_model_name_or_path": "ref_model_path",
    "value_model": "value_model_path",
    "value_model_name_or_path": "value_model_path",
    "critic_model": "value_model_path",
    "reward_model": "reward_model_path",
    "reward_model_name": "reward_model_path",
    "reward_model_name_or_path": "reward_model_path",
    "reward_functions": "reward_funcs",
    "reward_function_weights": "reward_weights",
    "composite_weights": "reward_weights",
    "torch_dtype": "dtype",
    "use_lora": "use_peft",
    "lora_rank": "lora_r",
    # Data
    "dataset": "dataset_name",
    "query_dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "data_path": "dataset_name",
    "dataset_config_name": "dataset_config",
    "split": "dataset_train_split",
    "train_split": "dataset_train_split",
    "dataset_split": "dataset_train_split",
    "dataset_eval_split": "dataset_test_split",
    "eval_dataset": "eval_dataset_name",
    "max_prompt_len": "max_prompt_length",
    "prompt_max_len": "max_prompt_length",
    "dataset_streaming": "streaming",
    "buffer_size": "shuffle_buffer",
    "interleave_probs": "dataset_weights",
    "prompt_data": "dataset_name",
    "prompt_data_probs": "dataset_weights",
    "prompt_split": "dataset_train_split",
    # Sampling
    "max_new_tokens": "response_length",
    "max_completion_length": "response_length",
    "max_response_length": "response_length",
    "generate_max_len": "response_length",
    "truncate_token": "stop_token",
    "truncate_token_id": "stop_token_id",
    "stop_token_ids": "stop_token_id",
    "num_return_sequences": "num_generations",
    "n_samples_per_prompt": "num_generations",
    # Reward
    "init_kl_coef": "kl_coef",
    "kl_penalty_coef": "kl_coef",
    "lambd": "lam",
    "lambda": "lam",
    "gae_lambda": "lam",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "score_clip": "reward_clip",
    # Policy
    "divergence_type": "trust_region",
    "divergence_topk": "divergence_top_k",
    "clip_ratio_high": "cliprange_high",
    "importance_sampling_level": "ratio_level",
    "target_kl": "early_stop_kl",
    "entropy_coeff": "entropy_coef",
    "ent_coef": "entropy_coef",
    "ppo_epochs": "num_ppo_epochs",
    "noptepochs": "num_ppo_epochs",
    "nminibatches": "num_mini_batches",
    "clip_ratio": "cliprange",
    "clip_range": "cliprange",
    "clip_ratio_value": "cliprange_value",
    "clip_range_value": "cliprange_value",
    # Batches
    "num_epochs": "num_train_epochs",
    "rollout_batch_size": "batch_size",
    "local_micro_batch_size": "per_device_train_batch_size",
    "per_device_batch_size": "per_device_train_batch_size",
    # Optimizer
    "lr": "learning_rate",
    "eps": "adam_epsilon",
    "adam_eps": "adam_epsilon",
    "actor_lr": "learning_rate",
    "actor_learning_rate": "learning_rate",
    "policy_lr": "learning_rate",
    "vf_lr": "vf_learning_rate",
    "value_lr": "vf_learning_rate",
    "critic_lr": "vf_learning_rate",
    "critic_learning_rate": "vf_learning_rate",
    "clip_grad": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "scheduler": "lr_scheduler_type",
    "lr_scheduler": "lr_scheduler_type",
    "num_warmup_steps": "warmup_steps",
    "warm_up_steps": "warmup_steps",
    "optimizer": "optim",
    # Reports
    "log_with": "report_to",
    "log_interval": "logging_steps",
    "eval_interval": "eval_steps",
    "save_interval": "save_steps",
    "hf_repo_id": "hub_model_id",
}


RETIRED: dict[str, Retired] = {
    # Sizes that the trainer works out
    "epochs": Retired(
        "give num_ppo_epochs for passes over a rollout, num_train_epochs for passes over the prompts", ()
    ),
    "train_iters": Retired(LENGTH, ()),
    "num_steps": Retired(LENGTH, (None,)),
    "load": Retired("the policy is model_name_or_path; a run cannot be resumed yet", (None,)),
    "save": Retired("models, metrics and samples go into output_dir", ()),
    "world_size": Retired("the number of processes is torchrun's --nproc_per_node"),
    "num_total_batches": Retired(COMPUTED),
    "num_updates": Retired(COMPUTED),
    "micro_batch_size": Retired(COMPUTED, (None,)),
    "local_batch_size": Retired(COMPUTED, (None,)),
    "mini_batch_size": Retired(f"{COMPUTED}; num_mini_batches says into how many a batch is cut", (None,)),
    "local_mini_batch_size": Retired(f"{COMPUTED}; num_mini_batches says into how many a batch is cut", (None,)),
    "max_steps": Retired(LENGTH, (None, -1)),
    "warmup_ratio": Retired("give warmup_steps, in updates", (None, 0)),
    "max_length": Retired("prompt and response have a limit each: max_prompt_length and response_length", (None,)),
    "max_seq_length": Retired("prompt and response have a limit each: max_prompt_length and response_length", (None,)),
    "max_samples": Retired("cut the data set, or give total_episodes", (None,)),
    # Processes and precision
    "ds3_gather_for_generation": Retired(SHARDED),
    "deepspeed": Retired(SHARDED, (None, False)),
    "fsdp": Retired(SHARDED, (None, False, "")),
    "fp16": Retired("float16 loses small gradients; use bf16", (None, False)),
    "load_in_8bit": Retired(QUANTISED, (None, False)),
    "load_in_4bit": Retired(QUANTISED, (None, False)),
    "gradient_checkpointing_kwargs": Retired("gradient_checkpointing alone decides"),
    "dataset_num_proc": Retired(IN_PLACE),
    "dataloader_num_workers": Retired(IN_PLACE),
    "remove_unused_columns": Retired("all columns reach the reward functions"),
    "dataloader_drop_last": Retired(IN_PLACE),
    "dataloader_pin_memory": Retired(IN_PLACE),
    "per_device_eval_batch_size": Retired("local_rollout_forward_batch_size holds for evaluation too"),
    "local_rank": Retired("torchrun tells each process its number"),
    "disable_dropout": Retired("dropout is off in every model", (None, True)),
    "activation_offloading": Retired("gradient_checkpointing saves memory", (None, False)),
    "pad_token": Retired("nothing is padded"),
    "pad_to_multiple_of": Retired("nothing is padded"),
    "eos_token": Retired("the end of a text is the tokenizer's own EOS", (None,)),
    "chat_template_path": Retired("set the tokenizer's own chat_template", (None,)),
    "torch_compile": Retired("models are not compiled", (None, False)),
    "use_vllm": Retired(OWN_ENGINE, (None, False)),
    # Models
    "attn_implementation": Retired("rows are packed, with an attention of their own"),
    "model_revision": Retired("download the revision and give its folder", (None, "main")),
    "lora_dropout": Retired("dropout is off in every model, so that ratios start at 1"),
    "lora_task_type": Retired("the policy is always a causal language model"),
    "lora_modules_to_save": Retired(PEFT, (None,)),
    "use_rslora": Retired(PEFT, (None, False)),
    "use_dora": Retired(PEFT, (None, False)),
    # Algorithm
    "do_sample": Retired("PPO learns from sampled responses; temperature sets how bold they are", (None, True)),
    "adap_kl_ctrl": Retired("kl_target makes kl_coef adapt", (None, False)),
    "early_stopping": Retired("early_stop_kl ends the epochs of an update", (None, False)),
    "use_score_norm": Retired("give normalize_scores = shift_and_scale", (None, False)),
    "use_score_scaling": Retired("give normalize_scores = scale", (None, False)),
    "beta": Retired("give kl_coef, with kl_in = loss and kl_estimator = k3 for what TRL calls beta", (None, 0)),
    "clip_ratio_c": Retired(
        "in verl it is the dual clip: give dual_clip; in TRL's DPPO the largest importance weight: give ratio_cap", ()
    ),
    "epsilon": Retired("give cliprange for clip, divergence_low for divergences", ()),
    "epsilon_high": Retired("give cliprange_high for clip, divergence_high for divergences", ()),
    "loss_type": Retired("give trust_region and loss_aggregation", ()),
    "scale_rewards": Retired("give advantage = group_normalized or group_mean", ()),
    "model_adapter_name": Retired("adapters are made by use_peft, or given to PPOTrainer as peft_config", (None,)),
    "ref_adapter_name": Retired("the reference is the policy without its adapter, or ref_model_path", (None,)),
    "stage": Retired("the command `nearstep ppo` says it", ("trl_ppo",)),
    "algorithm": Retired("only PPO is here", ("ppo",)),
    "backend": Retired("there is one loop, on transformers' models", (None, "auto", "trl", "unsloth")),
    # Reports
    "sanity_check": Retired("for a short run give a small total_episodes", (None, False)),
    "eval_strategy": Retired("eval_steps says how often to evaluate", (None, False, "steps")),
    "evaluation_strategy": Retired("eval_steps says how often to evaluate", (None, False, "steps")),
    "save_strategy": Retired("save_steps says how often to save; the end is always saved", (None, False, "steps")),
    "logging_strategy": Retired("logging_steps says how often to log", (None, "steps")),
    "load_best_model_at_end": Retired("the last policy is saved; save_steps keeps earlier ones", (None, False)),
    "hub_token": Retired("log in with `hf auth login`"),
    "logging_dir": Retired("reports go into output_dir"),
    "do_train": Retired("the command `nearstep ppo` trains", (None, True)),
    "do_eval": Retired("eval_dataset_name or dataset_test_split switches evaluation on", (None, True)),
    "overwrite_output_dir": Retired("output_dir is used as it is"),
}


@dataclass(frozen=True)
class OldNames:
    """The names that one command understands beside its own."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    retired: Mapping[str, Retired] = field(default_factory=dict)
    families: tuple[tuple[re.Pattern[str], Retired], ...] = ()
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # by setting: theirs → ours

    def why_absent(self, name: str) -> Retired | None:
        """Why there is no such setting, where that is known of it or of its family."""
        of_family = (retired for pattern, retired in self.families if pattern.fullmatch(name))
        return self.retired.get(name) or next(of_family, None)


_PROMPT_TYPES = {"empty": "raw", "trl": "raw_bos"}

OF_TRAINING = OldNames(
    {**RENAMED, "resume_from_checkpoint": "resume"},
    RETIRED,
    FAMILIES,
    {"prompt_type": _PROMPT_TYPES, "resume": {"true": "auto", "True": "auto"}},
)

OF_REWARD_MODELS = OldNames(
    {**RENAMED, "max_seq_length": "max_length", "label_smoothing_factor": "label_smoothing"},
    {name: retired for name, retired in RETIRED.items() if name != "max_seq_length"},
    FAMILIES,
)

# MindSpeed-LLM's preprocess_data.py.
OF_PREPARE = OldNames(
    renamed={
        "input_name": "input",
        "output_prefix": "output",
        "tokenizer_name_or_path": "tokenizer",
        "handler": "dataset_format",
        "handler_name": "dataset_format",
        "format": "dataset_format",
        "seq_length": "max_length",
        "max_prompt_length": "max_length",
        "num_proc": "workers",
        "dataset_num_proc": "workers",
        "dataset_config_name": "dataset_config",
    },
    retired={
        "tokenizer_type": Retired("the tokenizer's own files say what it is"),
        "append_eod": Retired("a prompt does not end with EOS: the policy goes on from there", (False, None)),
        "pack": Retired("prompts are not packed: each has a response of its own", (False, None)),
        "n_subs": Retired("files are cut into pieces as they are read"),
        "streaming": Retired("rows are always streamed"),
        "cache_dir": Retired("nothing is cached"),
        "overwrite_cache": Retired("nothing is cached"),
        "dataset_impl": Retired("the output is Arrow, which `nearstep ppo` and `datasets` open"),
    },
    values={
        "prompt_type": _PROMPT_TYPES,
        "dataset_format": {
            "PPOAlpacaStyleInstructionHandler": "alpaca",
            "AlpacaStyleInstructionHandler": "alpaca",
            "SharegptStyleInstructionHandler": "sharegpt",
        },
    },
)
