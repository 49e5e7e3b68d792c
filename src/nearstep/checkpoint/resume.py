"""Which checkpoint a run goes on from, and whether it may."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nearstep.checkpoint import files
from nearstep.checkpoint.seal import CheckpointManifest, check_whole
from nearstep.common.errors import CheckpointError, ConfigError, shorten
from nearstep.common.secrets import public_settings
from nearstep.config.old_names import OF_TRAINING
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import current_name
from nearstep.reports.run_folder import checkpoints, update_of

SETTINGS, BEGUN = "settings.json", "begun.json"
AUTO = "auto"

# What may change between a run and its continuation: how far it goes, where and how it is run, shown and saved.
# Everything else is part of what is learned, and a change there is a fork.
FREE_SETTINGS = frozenset({
    "total_episodes", "num_train_epochs",
    "output_dir", "run_name", "use_cpu", "resume", "fork_from", "report_to", "log_style", "logging_steps",
    "log_rollouts", "dump_rollouts", "rollouts_max_mib", "record_token_rows", "num_sample_generations", "eval_steps",
    "eval_on_start", "eval_temperature", "eval_num_generations", "eval_reward_model_path", "eval_reward_funcs",
    "eval_reference_column", "metric_for_best_model", "greater_is_better", "early_stopping_patience",
    "early_stopping_threshold", "stop_kl", "stop_score", "stop_patience",
    "save_steps", "save_minutes", "save_total_limit", "keep_steps", "keep_best", "on_save_error", "max_broken_updates",
    "sharded_checkpoints", "max_shard_size",
    "wait_timeout_seconds",
    "push_to_hub", "hub_model_id",
    # Of these only the batch that they make counts, together with the number of processes: `check_begin` looks at it.
    "batch_size", "gradient_accumulation_steps", "per_device_train_batch_size",
    "max_tokens_per_microbatch", "local_rollout_forward_batch_size",
    "gradient_checkpointing", "gradient_checkpointing_every", "offload_roles",
    "dp_shard", "dp_replicate", "tp_size", "ep_size", "sp_size", "whole_roles", "zero_stage",
    "deepspeed",
    "reward_url", "reward_url_token_env", "reward_url_timeout_seconds", "reward_url_retries", "reward_url_batch_size",
    "reward_workers", "reward_timeout_seconds",
})  # fmt: skip


@dataclass(frozen=True)
class Resumed:
    """A checkpoint that is whole and belongs to this run, and what the user should know of how it was found."""

    folder: Path
    manifest: CheckpointManifest
    is_fork: bool = False  # it is another run's, which goes on by itself
    notes: tuple[str, ...] = ()


def choose_checkpoint(run: Path, place: str, kept: Mapping[str, Any]) -> Resumed | None:
    """The checkpoint that `resume` means.

    "auto" takes the newest whole checkpoint of the run's folder, past damaged ones, which it names, and is None where
    there is none at all. A folder, by its path or by its name in the run's, is taken or refused. Raises CheckpointError
    for a damaged one, ConfigError where settings differ that a run may not change; `kept` are those of the run that
    goes on.
    """
    given = Path(place) if Path(place).is_dir() else run / place
    if place != AUTO and not given.is_dir():
        there = ", ".join(folder.name for folder in checkpoints(run)) or "no checkpoint"
        raise ConfigError(f"resume = {place}: there is no such folder; {run} holds {there}")
    chosen = _newest_whole(run) if place == AUTO else Resumed(given, check_whole(given))
    if chosen is not None:
        require_same_settings(chosen.folder, kept)
    return chosen


def checkpoint_to_fork(place: str) -> Resumed:
    """A checkpoint of another run, whose settings may differ. Raises CheckpointError for a damaged one."""
    return Resumed(Path(place), check_whole(Path(place)), is_fork=True)


def _newest_whole(run: Path) -> Resumed | None:
    found = checkpoints(run)
    notes: list[str] = []
    for folder in reversed(found):
        try:
            return Resumed(folder, check_whole(folder), notes=tuple(notes))
        except CheckpointError as error:
            notes.append(f"{folder.name} is passed over: {error}")
    if found:
        raise CheckpointError(
            f"{run}: none of {len(found)} checkpoints is whole. " + "; ".join(notes) + ". Give another output_dir to "
            "begin anew"
        )
    return None


def refuse_used(run: Path) -> None:
    """Raise ConfigError where a run that begins anew would mix its checkpoints with those of an earlier one."""
    found = checkpoints(run)
    if found:
        raise ConfigError(
            f"output_dir = {run} holds a run up to update {update_of(found[-1])}: give --resume auto to go on with it, "
            "another output_dir, or remove its checkpoints"
        )


def refuse_other(run: Path, chosen: Path) -> None:
    """Raise ConfigError where the checkpoint lies elsewhere, and the run's folder holds those of another run.

    A copy of one of its own is taken: it has the same settings and began with the same weights and data.
    """
    if run.resolve() in chosen.resolve().parents:
        return
    for own in reversed(checkpoints(run)):
        try:
            here, there = _what_run(own), _what_run(chosen)
        except CheckpointError:  # the damaged one says nothing; the chosen one is whole
            continue
        if here != there:
            raise ConfigError(
                f"output_dir = {run} holds another run up to update {update_of(own)} than {chosen} belongs to. Give "
                "the folder of that run, or a new one"
            )
        return


def _what_run(checkpoint: Path) -> tuple[object, ...]:
    begun = files.read_json(checkpoint / BEGUN)
    return files.read_json(checkpoint / SETTINGS), begun["weights"], begun["rows"], begun.get("data")


def settings_to_keep(config: PPOConfig, named: Mapping[str, object]) -> dict[str, Any]:
    """The settings that a continuation must share, as plain values; `named` are those that Python's arguments gave."""
    given = public_settings(asdict(config) | dict(named))
    kept = {name: value for name, value in given.items() if name not in FREE_SETTINGS}
    plain: dict[str, Any] = json.loads(json.dumps(kept, default=str))
    return plain


def settings_at_defaults() -> dict[str, Any]:
    """Every setting that a continuation must share, as a checkpoint has it where nothing else is said."""
    defaults = {setting.name: setting.default for setting in fields(PPOConfig)}
    return {name: json.loads(json.dumps(value)) for name, value in defaults.items() if name not in FREE_SETTINGS}


def _as_now(name: str, value: Any) -> tuple[str, Any]:
    """A setting by its name and value of today."""
    name = current_name(name)
    return name, OF_TRAINING.values.get(name, {}).get(value, value) if isinstance(value, str) else value


def require_same_settings(folder: Path, now: Mapping[str, Any]) -> None:
    """Raise ConfigError that lists every setting, old and new, in which a run differs from its checkpoint's.

    A checkpoint of an earlier version has the names of its time, and what came since stood at its default.
    """
    kept = dict(_as_now(name, value) for name, value in files.read_json(folder / SETTINGS).items())
    before = settings_at_defaults() | kept
    changed = [
        f"  {name}: {shorten(before.get(name))} → {shorten(now.get(name))}"
        for name in sorted(before.keys() | now.keys())
        if name not in FREE_SETTINGS and before.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{folder} was made with other settings:\n" + "\n".join(changed) + "\nA run that goes on keeps them; "
            "`nearstep fork` starts a new run from it with others"
        )
