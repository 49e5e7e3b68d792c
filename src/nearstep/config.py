"""Which settings a run has, what each does, and which combinations are refused."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from nearstep.settings import accepts_old_names, option


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class PPOConfig:
    """All settings of a PPO run, flat and frozen.

    Field names are those of TRL's `PPOConfig` where it had the setting. Unknown names, wrong types and clashing values
    are refused with a `ConfigError` that lists every problem at once.
    """

    # --- Run
    output_dir: str = option("nearstep-output", "folder for models, metrics and samples; made if missing")
    run_name: str | None = option(None, "name of the run at trackers; the folder's name if not given")
    seed: int = option(42, "every random number of the run derives from it")
    use_cpu: bool = option(False, "stay on the CPU even where there is a GPU")

    # --- Models
    model_name_or_path: str | None = option(None, "policy and tokenizer: a folder or a hub name")
    sft_model_path: str | None = option(None, "weights of the policy, if not those of model_name_or_path")
    ref_model_path: str | None = option(None, "frozen reference; if not given, a copy of the policy as it starts")
    value_model_path: str | None = option(
        None, "critic with one label; if not given, started from the reward model, else from the policy's trunk"
    )
    reward_model_path: str | None = option(None, "reward model with one label, of any family and tokenizer")
    reward_funcs: tuple[str, ...] = option((), "reward functions, each as file.py:name (or a reward model's folder)")
    reward_weights: tuple[float, ...] | None = option(
        None, "one weight for each reward, the reward model first; 1 each if not given"
    )
    dtype: Literal["float32", "bfloat16", "float64"] = option(
        "float32", "type of the weights of models that are loaded from a path"
    )
    bf16: bool = option(False, "compute forward and backward in bfloat16 (autocast), weights stay as they are")
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    use_peft: bool = option(False, "train LoRA adapters on the policy; the reference is the policy without them")
    lora_r: int = option(16, "rank of the adapters")
    lora_alpha: int = option(32, "scale of the adapters (alpha / rank)")
    lora_dropout: float = option(0.0, "dropout inside the adapters; 0 keeps ratios exact")
    lora_target_modules: tuple[str, ...] | None = option(None, "modules that get adapters; peft's choice if not given")
    trust_remote_code: bool = option(False, "allow models to bring Python code of their own")

    # --- Data
    dataset_name: str | None = option(None, "prompts: a jsonl, json, csv or parquet file, a folder, or a hub name")
    dataset_config: str | None = option(None, "configuration of a hub data set")
    dataset_train_split: str = option("train", "split that gives the prompts")
    eval_dataset_name: str | None = option(None, "prompts to evaluate on; none if neither this nor eval split is given")
    dataset_test_split: str | None = option(None, "split of dataset_name to evaluate on")
    max_prompt_length: int | None = option(None, "longest prompt in tokens; no limit but the model's if not given")
    on_long_prompt: Literal["error", "drop", "cut_left"] = option(
        "error", "what happens to a longer prompt: stop and name it, leave it out, or keep its last tokens"
    )

    # --- Sampling
    response_length: int = option(53, "most tokens of a response")
    temperature: float = option(0.7, "of sampling and of every log-probability; above 0")
    top_p: float = option(1.0, "sample from the smallest set of tokens with this probability; log-probs alike")
    top_k: int = option(0, "sample from this many most probable tokens, 0 for all; log-probs alike")
    stop_token: str | None = option("eos", "'eos', or the text of one token that ends a response; 'none' for no stop")
    stop_token_id: tuple[int, ...] | None = option(None, "ids of the tokens that end a response, instead of stop_token")
    num_generations: int = option(1, "responses sampled for each prompt")

    # --- Reward
    missing_eos_penalty: float | None = option(None, "subtracted from the score of a response that did not end itself")
    non_eos_penalty: bool = option(False, "replace the score of a response that did not end itself")
    penalty_reward_value: float = option(-1.0, "the score that non_eos_penalty puts in place")
    score_position: Literal["last_token", "after_eos"] = option(
        "last_token", "step that is paid the score; after_eos is TRL's habit"
    )
    kl_coef: float = option(0.05, "weight of the per-token KL penalty in the reward")
    kl_estimator: Literal["k1", "k2", "k3"] = option("k1", "how the KL of a token is estimated from its log-probs")
    whiten_rewards: bool = option(False, "scale per-token rewards to unit variance, mean kept")
    whiten_advantages: bool = option(True, "shift and scale advantages to mean 0 and variance 1, over all processes")
    gamma: float = option(1.0, "discount per token")
    lam: float = option(0.95, "lambda of generalised advantage estimation")

    # --- PPO
    num_ppo_epochs: int = option(4, "passes over each rollout")
    num_mini_batches: int = option(1, "optimizer steps in each pass")
    cliprange: float = option(0.2, "the ratio leaves the trust region outside 1 ± this")
    cliprange_value: float = option(0.2, "how far a value may move from its value at rollout")
    vf_coef: float = option(0.1, "weight of the value loss")

    # --- Batches
    total_episodes: int | None = option(None, "episodes of the run; num_train_epochs passes over the data if not given")
    num_train_epochs: float = option(3.0, "passes over the prompts, where total_episodes is not given")
    per_device_train_batch_size: int = option(8, "most rows that a process holds in one forward and backward pass")
    gradient_accumulation_steps: int = option(1, "only sizes the batch: rows × this × processes, if batch_size is not given")
    batch_size: int | None = option(None, "episodes of one update over all processes")
    max_tokens_per_microbatch: int = option(16384, "most tokens in one forward and backward pass; limits memory")
    local_rollout_forward_batch_size: int = option(64, "rows that a process generates or scores at a time")

    # --- Optimizer
    learning_rate: float = option(3e-6, "peak step size, of policy and critic")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = option(
        "linear", "course of the learning rate over the updates, stepped once per update"
    )
    warmup_steps: int = option(0, "updates over which the learning rate rises")
    optim: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = option("adamw_torch", "the optimizer")
    weight_decay: float = option(0.0, "decoupled weight decay")
    adam_beta1: float = option(0.9, "decay of Adam's first moment")
    adam_beta2: float = option(0.999, "decay of Adam's second moment")
    adam_epsilon: float = option(1e-8, "Adam's epsilon; the N+ study used 1e-5")
    max_grad_norm: float | None = option(1.0, "norm to which gradients of policy and critic together are cut; 'none' for none")

    # --- Reports
    logging_steps: int = option(1, "updates between two entries of the metrics")
    report_to: tuple[str, ...] = option((), "trackers: tensorboard, wandb, trackio, … (transformers' integrations)")
    num_sample_generations: int = option(10, "tables of sample completions in the run; 0 for none")
    log_rollouts: bool = option(True, "write every episode to rollouts.jsonl")
    eval_steps: int | None = option(None, "updates between two evaluations; only at the end if not given")
    save_steps: int | None = option(None, "updates between two saved models; only at the end if not given")
    save_total_limit: int | None = option(None, "how many of the folders made by save_steps are kept")
    push_to_hub: bool = option(False, "upload the final policy to the hub")
    hub_model_id: str | None = option(None, "repository for push_to_hub; the folder's name if not given")

    def problems(self) -> list[str]:
        """What is wrong with this configuration, in words; empty if nothing is. Types are checked before."""
        found = [rule for broken, rule in self._rules() if broken]
        return found

    def _rules(self) -> list[tuple[bool, str]]:
        positive = (
            "response_length", "temperature", "num_generations", "num_ppo_epochs", "num_mini_batches", "num_train_epochs",
            "per_device_train_batch_size", "gradient_accumulation_steps", "batch_size", "total_episodes",
            "max_tokens_per_microbatch", "local_rollout_forward_batch_size", "learning_rate", "adam_epsilon",
            "logging_steps", "eval_steps", "save_steps", "save_total_limit", "max_prompt_length", "max_grad_norm",
            "lora_r", "lora_alpha", "cliprange", "cliprange_value",
        )  # fmt: skip
        not_negative = (
            "kl_coef", "vf_coef", "warmup_steps", "weight_decay", "missing_eos_penalty", "top_k", "num_sample_generations",
            "seed",
        )  # fmt: skip
        unit = ("gamma", "lam", "top_p", "adam_beta1", "adam_beta2", "lora_dropout")
        values: dict[str, Any] = dataclasses.asdict(self)
        numbers = {name: v for name, v in values.items() if isinstance(v, int | float)}
        rules = [(not math.isfinite(v), f"{name} = {v} is not finite") for name, v in numbers.items()]
        rules += [(values[n] is not None and values[n] <= 0, f"{n} = {values[n]} must be above 0") for n in positive]
        rules += [(values[n] is not None and values[n] < 0, f"{n} = {values[n]} must not be negative") for n in not_negative]
        rules += [(not 0 <= values[n] <= 1, f"{n} = {values[n]} must lie between 0 and 1") for n in unit]
        return rules + self._clashes()

    def _clashes(self) -> list[tuple[bool, str]]:
        rewards = len(self.reward_funcs) + (self.reward_model_path is not None)
        both_stops = self.stop_token not in (None, "eos") and self.stop_token_id is not None
        both_penalties = self.missing_eos_penalty is not None and self.non_eos_penalty
        return [
            (both_stops, "stop_token and stop_token_id both say what ends a response: give one"),
            (both_penalties, "missing_eos_penalty subtracts and non_eos_penalty replaces: give one"),
            (self.top_p == 0, "top_p = 0 leaves no token to sample: give a share above 0, or 1 for all"),
            (self.cliprange >= 1, f"cliprange = {self.cliprange} must be below 1: a ratio is never negative"),
            (
                self.stop_token is None and self.stop_token_id is None and self.non_eos_penalty,
                "non_eos_penalty needs a stop token: with stop_token = none every response would get the penalty",
            ),
            (
                self.stop_token is None and self.stop_token_id is None and self.missing_eos_penalty is not None,
                "missing_eos_penalty needs a stop token: with stop_token = none every response would get the penalty",
            ),
            (
                self.reward_weights is not None and rewards > 0 and len(self.reward_weights) != rewards,
                f"reward_weights has {len(self.reward_weights or ())} entries for {rewards} reward(s)",
            ),
            (
                self.batch_size is not None and self.batch_size % self.num_generations != 0,
                f"batch_size = {self.batch_size} must be a multiple of num_generations = {self.num_generations}",
            ),
            (
                self.batch_size is not None and self.num_mini_batches > self.batch_size,
                f"num_mini_batches = {self.num_mini_batches} is more than batch_size = {self.batch_size} rows",
            ),
            (self.hub_model_id is not None and not self.push_to_hub, "hub_model_id has no effect without push_to_hub"),
            (
                self.eval_steps is not None and self.eval_dataset_name is None and self.dataset_test_split is None
                and self.dataset_name is not None,
                "eval_steps needs eval_dataset_name or dataset_test_split",
            ),
        ]  # fmt: skip
