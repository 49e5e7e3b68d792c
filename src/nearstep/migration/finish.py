"""What several settings of another library say together: batches, KL penalties, rewards, critics, processes.

Each function takes what the file says under one `@name` of `libraries.toml` and writes our settings into the draft.
"""

from collections.abc import Callable, Mapping

from nearstep.config.recipes import RECIPES
from nearstep.migration.courses import scheduler, shares
from nearstep.migration.critics import critic_steps
from nearstep.migration.draft import SettingsDraft, is_true, rows_by_device, rows_of_update
from nearstep.migration.kl import beta, in_loss, kl_of_verl
from nearstep.migration.placement import in_pieces, processes, strategy, zero_stage
from nearstep.migration.rewards import reward_enabled, reward_file, reward_models, reward_url, weights_beside_a_model

# Prompts of a rollout and size of an optimizer step where the file says neither.
PROMPTS: Mapping[str, tuple[int, int]] = {"openrlhf": (1024, 128), "verl": (1024, 256)}


def finish(
    library: str, special: Mapping[str, object], draft: SettingsDraft, defaults: Mapping[str, object]
) -> str | None:
    """Write the settings that `special` means; returns the recipe, if it names one."""
    if "gpus" in special or "nodes" in special:
        processes(special, draft)
    for name, value in special.items():
        if name in FINISHES and value is not None:
            FINISHES[name](value, draft)
    _batch(library, special, draft, defaults)
    _same_models(draft)
    shares(special, draft, library)
    if library == "verl":
        kl_of_verl(special, draft)
        reward_file(special, draft)
        critic_steps(special, draft, defaults)
        draft.told.append("verl computes in bfloat16 beside float32 weights: bf16 = true does so, where a GPU is")
    elif library == "aligntune":
        weights_beside_a_model(draft)
    else:
        in_loss(special, draft)
    return draft.recipe


def _batch(library: str, special: Mapping[str, object], draft: SettingsDraft, defaults: Mapping[str, object]) -> None:
    """Prompts × responses of an update, cut into minibatches; and the length of the run in steps."""
    prompts_default, mini_default = PROMPTS.get(library, (None, None))
    generations = draft.whole(draft.settings.get("num_generations", defaults.get("num_generations", 1)))
    prompts = draft.whole(special.get("prompts", prompts_default))
    if prompts is not None and generations is not None:
        prompts *= draft.whole(special.get("accumulation", 1)) or 1
        draft.settings["batch_size"] = prompts * generations
        draft.told.append(f"batch_size = {prompts} prompts × {generations} responses")
    rows = rows_of_update(draft)
    mini = draft.whole(special.get("mini_prompts"))
    mini_rows = draft.whole(special.get("mini_rows")) if mini is None or generations is None else mini * generations
    if mini_rows is None and mini_default is not None and generations is not None:
        mini_rows = mini_default * (generations if library == "verl" else 1)
    if library == "trl_dppo" and "batch_size" in draft.settings and mini_rows is None:
        mini_rows = rows_by_device(draft)  # generation_batch_size, of which each optimizer step takes some
    if rows is not None and mini_rows:
        draft.settings["num_mini_batches"] = max(1, -(-rows // mini_rows))
    if special.get("steps") is not None:
        steps = draft.whole(special["steps"])
        if steps is None or rows is None:
            draft.told.append(f"the run has {special['steps']} steps: give total_episodes = steps × batch_size")
        elif steps > 0:
            draft.settings["total_episodes"] = steps * rows if library != "trl_dppo" else _of_steps(steps, rows, draft)
            draft.settings.pop("num_train_epochs", None)


def _of_steps(steps: int, rows: int, draft: SettingsDraft) -> int:
    """Episodes of so many optimizer steps, of which each rollout has passes × minibatches."""
    of_rollout = 1
    for name in ("num_ppo_epochs", "num_mini_batches"):
        of_rollout *= draft.whole(draft.settings.get(name, 1)) or 1
    if of_rollout > 1:
        draft.told.append(f"total_episodes = {steps} optimizer steps / {of_rollout} for a rollout × {rows} responses")
    return -(-steps // of_rollout) * rows


def _same_models(draft: SettingsDraft) -> None:
    """Roles for which the policy's own folder stands, as examples have it: no head was trained there."""
    policy, reward = draft.settings.get("model_name_or_path"), draft.settings.get("reward_model_path")
    if policy is not None and reward == policy:
        draft.told.append(
            "the reward model is the policy's folder, which has no trained head: for a first try --random_reward_head, "
            "whose scores mean nothing, or --reward_funcs length in its place"
        )
    critic = draft.settings.get("value_model_path")
    if critic is not None and critic in (policy, reward):
        _critic(draft.settings.pop("value_model_path"), draft)


def _critic(value: object, draft: SettingsDraft) -> None:
    draft.told.append(
        f"the critic {value} is left out: it starts from the reward model if that reads the same tokens, else from the "
        "policy's trunk. value_model_path takes one that was saved with its head"
    )


def _lora(value: object, draft: SettingsDraft) -> None:
    rank = draft.whole(value)
    if rank is None or rank > 0:
        draft.settings |= {"use_peft": True, "lora_r": value}
        for name, there in (("lora_alpha", 16), ("lora_target_modules", "all-linear")):
            if name not in draft.settings:  # the defaults of OpenRLHF and of verl
                draft.settings[name] = there
                draft.told.append(f"{name}: {there} is the default there")
    else:
        for name in ("lora_alpha", "lora_target_modules"):
            draft.settings.pop(name, None)


def _positive(name: str) -> Callable[[object, SettingsDraft], None]:
    """A setting that −1 or 0 switches off there."""

    def write(value: object, draft: SettingsDraft) -> None:
        number = draft.number(value)
        if number is None or number > 0:
            draft.settings[name] = value

    return write


def _switched(name: str, when: object = True) -> Callable[[object, SettingsDraft], None]:
    """A setting that a switch means."""

    def write(value: object, draft: SettingsDraft) -> None:
        if is_true(value):
            draft.settings[name] = when

    return write


def _tracker(name: str) -> Callable[[object, SettingsDraft], None]:
    def write(value: object, draft: SettingsDraft) -> None:
        if str(value).lower() not in ("none", "null", "false", ""):
            before = draft.settings.get("report_to", [])
            draft.settings["report_to"] = [*(before if isinstance(before, list) else [before]), name]

    return write


def _trackers(value: object, draft: SettingsDraft) -> None:
    names = [str(each) for each in (value if isinstance(value, list) else [value]) if each not in ("console", "none")]
    if names:
        draft.settings["report_to"] = names


def _gate(value: object, draft: SettingsDraft) -> None:
    if is_true(value):
        draft.settings |= {"gate": "score_range", "gate_fill": "refill"}


def _optimizer(value: object, draft: SettingsDraft) -> None:
    if not str(value).startswith("adamw"):
        draft.lose("optimizer", value, "optim is adamw_torch, adamw_torch_fused or sgd")


def _precision(value: object, draft: SettingsDraft) -> None:
    if value in ("bf16", "bfloat16"):
        draft.settings["bf16"] = True
    elif value not in ("fp32", "float32", "auto"):
        draft.lose("precision", value, "mixed precision is bf16 or none")


def _blend(name: str) -> Callable[[object, SettingsDraft], None]:
    """OpenRLHF's data sets and their shares, with commas between them; `json@FOLDER` names a kind of file too."""

    def write(value: object, draft: SettingsDraft) -> None:
        entries = value if isinstance(value, list) else str(value).split(",")
        parts = [str(entry).strip().partition("@") for entry in entries]
        draft.settings[name] = [place or kind for kind, _, place in parts]

    return write


def _prompt_column(value: object, draft: SettingsDraft) -> None:
    if value not in ("prompt", "input_ids"):
        draft.settings["columns"] = [f"prompt={value}"]


def _answer_column(value: object, draft: SettingsDraft) -> None:
    draft.told.append(f"the column {value} reaches reward functions by its name")


def _truncation(value: object, draft: SettingsDraft) -> None:
    names = {"left": "cut_left", "error": "error"}
    if value in names:
        draft.settings.setdefault("on_long_prompt", names[str(value)])  # what is filtered out is not cut
    else:
        draft.lose("data.truncation", value, "prompts keep their last tokens (cut_left), are left out, or are an error")


def _pair(first: str, second: str) -> Callable[[object, SettingsDraft], None]:
    def write(value: object, draft: SettingsDraft) -> None:
        numbers = value if isinstance(value, list) else str(value).split()
        if len(numbers) == 2:
            draft.settings |= {first: numbers[0], second: numbers[1]}

    return write


def _reward_clip(value: object, draft: SettingsDraft) -> None:
    numbers = value if isinstance(value, list) else str(value).split()
    limits = [draft.number(each) for each in numbers]
    if len(limits) == 2 and None not in limits and limits[0] == -(limits[1] or 0):
        draft.settings["reward_clip"] = limits[1]
    else:
        draft.lose("reward_clip_range", value, "scores are cut to ± one number, reward_clip")


def _actor_and_reference(value: object, draft: SettingsDraft) -> None:
    draft.settings |= {"model_name_or_path": value, "ref_model_path": value}


def _scale_rewards(value: object, draft: SettingsDraft) -> None:
    if str(value).lower() in ("true", "group"):
        draft.settings["advantage"] = "group_normalized"
    elif str(value).lower() in ("false", "none"):
        draft.settings["advantage"] = "group_mean"
    elif str(value).lower() == "batch":
        draft.settings |= {"advantage": "group_mean", "whiten_advantages": True}
        draft.told.append(
            "scale_rewards = batch: advantages are divided by their own standard deviation over the batch, there by "
            "that of the rewards"
        )
    else:
        draft.lose("scale_rewards", value, "advantage = group_normalized or group_mean")


def _generation_steps(value: object, draft: SettingsDraft) -> None:
    steps, before = draft.whole(value), draft.whole(draft.settings.get("gradient_accumulation_steps", 1))
    if steps and before:
        draft.settings["gradient_accumulation_steps"] = steps
        draft.settings["num_mini_batches"] = max(1, steps // before)


def _algorithm(value: object, draft: SettingsDraft) -> None:
    if str(value) in RECIPES:
        draft.recipe = str(value)
    elif str(value) != "ppo":
        draft.lose("algorithm", value, f"there are ppo and the recipes {', '.join(RECIPES)}")


def _resume_mode(value: object, draft: SettingsDraft) -> None:
    if value in ("auto", "resume_path"):
        draft.settings["resume"] = "auto"


def _backend(value: object, draft: SettingsDraft) -> None:
    if value == "unsloth":
        draft.settings |= {"model_loader": "unsloth", "use_peft": True}
        draft.told.append("unsloth needs an environment of its own: docs/unsloth.md (load_in_4bit packs the weights)")
    elif value not in ("trl", "auto", "transformers"):
        draft.lose("backend", value, "models are loaded by transformers, or by unsloth")


def _accelerate(value: object, draft: SettingsDraft) -> None:
    draft.told.append(
        f"accelerate launch --config_file {value} starts nearstep's scripts too: its ZeRO stage or FSDP is read as "
        "zero_stage or dp_shard; under torchrun give these yourself"
    )


FINISHES: Mapping[str, Callable[[object, SettingsDraft], None]] = {
    "critic": _critic, "reward_url": reward_url, "reward_models": reward_models,
    "chat": _switched("prompt_type", "chat"), "lora_rank": _lora,
    "wandb": _tracker("wandb"), "tensorboard": _tracker("tensorboard"), "reward_clip": _reward_clip,
    "clip_pair": _pair("cliprange", "cliprange_high"), "betas": _pair("adam_beta1", "adam_beta2"),
    "prompt_column": _prompt_column, "answer_column": _answer_column, "truncation": _truncation,
    "blend": _blend("dataset_name"), "blend_weights": _blend("dataset_weights"),
    "filter": _switched("on_long_prompt", "drop"), "warmup": _positive("warmup_steps"),
    "critic_warmup": _positive("vf_lr_warmup_steps"),
    "freezing": _positive("vf_warmup_updates"), "top_k": _positive("top_k"),
    "save_freq": _positive("save_steps"), "test_freq": _positive("eval_steps"), "reward_enabled": reward_enabled,
    "resume_mode": _resume_mode, "actor_and_reference": _actor_and_reference,
    "no_shuffle": _switched("shuffle_dataset", False),
    "recompute": lambda value, draft: draft.settings.update(gradient_checkpointing=True),
    "accelerate_config": _accelerate,
    "beta": beta, "scheduler": scheduler, "scale_rewards": _scale_rewards, "generation_steps": _generation_steps,
    "algorithm": _algorithm,
    "backend": _backend, "zero_stage": zero_stage, "strategy": strategy, "shard_size": in_pieces, "gate": _gate,
    "optimizer": _optimizer, "trackers": _trackers, "precision": _precision,
    **dict.fromkeys(  # read together with others
        ("gpus", "nodes", "prompts", "mini_rows", "mini_prompts", "steps", "accumulation", "kl_in_loss", "kl_loss_coef",
         "kl_loss_type", "kl_in_reward", "kl_type", "kl_target", "kl_horizon", "reward_file", "reward_name", "stage",
         "warmup_share", "critic_warmup_share", "critic_epochs", "critic_mini", "critic_clip", "critic_decay",
         "critic_checkpointing", "critic_aggregation"),
        lambda value, draft: None,
    ),
}  # fmt: skip
