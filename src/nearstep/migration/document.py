"""The page of flags: every setting of other libraries that `nearstep migrate` knows, and what it is here.

python -m nearstep.migration.document > docs/migrations/flags.md
"""

from collections.abc import Iterator, Mapping

from nearstep.migration.foreign import LIBRARIES, Library

# What a name that is worked out from several settings becomes.
WORKED_OUT: Mapping[str, str] = {
    "critic": "left out: the critic starts from the reward model or the policy's trunk",
    "reward_models": "`reward_model_path`: the first of several",
    "reward_url": "`reward_url`, or `reward_funcs` for a file", "prompts": "`batch_size` = this × `num_generations`",
    "mini_rows": "`num_mini_batches` = `batch_size` / this",
    "mini_prompts": "`num_mini_batches` = `batch_size` / (this × `num_generations`)",
    "kl_in_loss": "`kl_in = loss`", "prompt_column": "`columns prompt=NAME`",
    "answer_column": "a column that reward functions read by its name", "chat": "`prompt_type = chat`",
    "lora_rank": "`use_peft`, `lora_r`", "gpus": "`torchrun --nproc_per_node`", "nodes": "`torchrun --nnodes`",
    "wandb": "`report_to wandb`", "tensorboard": "`report_to tensorboard`", "reward_clip": "`reward_clip`",
    "clip_pair": "`cliprange`, `cliprange_high`", "betas": "`adam_beta1`, `adam_beta2`",
    "blend": "`dataset_name`, several by blanks", "blend_weights": "`dataset_weights`, by blanks",
    "truncation": "`on_long_prompt`", "filter": "`on_long_prompt = drop`", "warmup": "`warmup_steps`",
    "top_k": "`top_k`", "save_freq": "`save_steps`", "test_freq": "`eval_steps`",
    "reward_enabled": "whether `reward_model_path` is given", "resume_mode": "`resume = auto`",
    "actor_and_reference": "`model_name_or_path` and `ref_model_path`", "no_shuffle": "`shuffle_dataset = false`",
    "recompute": "`gradient_checkpointing`", "accelerate_config": "`accelerate launch` reads it here too",
    "zero_stage": "3: `dp_shard = -1`; 2: `zero_stage = 2`", "shard_size": "`dp_shard`",
    "strategy": "fsdp, fsdp2: `dp_shard = -1`",
    "beta": "`kl_coef`, `kl_in = loss`, `kl_estimator = k3`", "scale_rewards": "`advantage`",
    "generation_steps": "`gradient_accumulation_steps`, `num_mini_batches`", "algorithm": "`--recipe`",
    "backend": "unsloth: `model_loader`, `use_peft`", "gate": "`gate = score_range`, `gate_fill = refill`",
    "optimizer": "`optim`", "trackers": "`report_to`", "precision": "`bf16`",
    "steps": "`total_episodes` = this × `batch_size`", "accumulation": "a factor of `batch_size`",
    "kl_loss_coef": "`kl_coef`, with `kl_in = loss`", "kl_loss_type": "`kl_estimator`, with `kl_in = loss`",
    "kl_in_reward": "`kl_in = reward`; without either KL `kl_coef = 0`", "kl_type": "`kl_target` where adaptive",
    "warmup_share": "`warmup_steps` = this × updates, where the file tells how many",
    "scheduler": "`lr_scheduler_type`",
    "critic_warmup_share": "`vf_lr_warmup_steps` = this × updates, where the file tells how many",
    "critic_warmup": "`vf_lr_warmup_steps`", "critic_mini": "one size of minibatches for policy and critic",
    "critic_epochs": "`critic = decoupled`, `num_vf_epochs`, where it differs from the policy's",
    "critic_aggregation": "`loss_aggregation`, one for both", "freezing": "`vf_warmup_updates`",
    "critic_clip": "`max_grad_norm`, one for both", "critic_decay": "`weight_decay`, one for both",
    "critic_checkpointing": "`gradient_checkpointing`, one for both",
    "kl_target": "`kl_target`", "kl_horizon": "`kl_horizon`", "reward_file": "`reward_funcs FILE:NAME`",
    "reward_name": "`reward_funcs FILE:NAME`", "stage": "the command `nearstep ppo`",
}  # fmt: skip


def text() -> str:
    """The page."""
    parts = [
        "# Flags of other libraries",
        "What `nearstep migrate FILE` makes of each. Names that are the same here, and those that `nearstep ppo` "
        "understands by itself (it says so), are not listed.",
    ]
    for name, library in LIBRARIES.items():
        if name != "decoupled_draft":  # its names are TRL's and ours
            parts += [f"## {library.title}", *_tables(library)]
    return "\n\n".join([*parts, "Made from `nearstep/migration/libraries.toml` by `python -m "
                        "nearstep.migration.document`."]) + "\n"  # fmt: skip


def _tables(library: Library) -> Iterator[str]:
    if library.recipe is not None:
        yield f"With `--recipe {library.recipe}`."
    rows = [f"| `{theirs}` | {_ours(ours)} |" for theirs, ours in library.names.renamed.items()]
    yield "\n".join(["| there | here |", "| --- | --- |", *rows])
    values = [
        f"| `{ours} = {theirs}` | `{value}` |"
        for ours, names in library.names.values.items()
        for theirs, value in names.items()
    ]
    if values:
        yield "\n".join(["| value there | here |", "| --- | --- |", *values])
    if library.names.retired:
        lost = [f"| `{theirs}` | {retired.sentence} |" for theirs, retired in library.names.retired.items()]
        yield "\n".join(["| no counterpart | why, and what to do |", "| --- | --- |", *lost])
    if library.defaults:
        yield "Defaults that are others here, and are written out: " + ", ".join(
            f"`{name} = {value}`" for name, value in library.defaults.items()
        ) + "."  # fmt: skip


def _ours(name: str) -> str:
    return WORKED_OUT[name.removeprefix("@")] if name.startswith("@") else f"`{name}`"


if __name__ == "__main__":
    print(text(), end="")
