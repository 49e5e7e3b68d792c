"""What a DeepSpeed configuration file asks for: what is passed on, what is not used and said, what is refused.

DeepSpeed's own page names the entries (deepspeed.ai/docs/config-json). Standard library only.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from nearstep.common.errors import ConfigError
from nearstep.common.places import expanded
from nearstep.config.settings import Problem

STAGES = (2, 3)
AUTO = "auto"  # "as the program has it", in files for transformers
# Of `zero_optimization`: sizes of messages and buffers, which change no number.
PASSED = (
    "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "overlap_comm", "reduce_bucket_size",
    "reduce_scatter", "stage3_max_live_parameters", "stage3_max_reuse_distance",
    "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "sub_group_size",
)  # fmt: skip
WHOLE = ("stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save")
UNUSED = (
    "steps_per_print", "wall_clock_breakdown", "dump_state", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
)  # fmt: skip


@runtime_checkable
class DeepSpeedSettings(Protocol):
    """The settings that such a file speaks of too."""

    @property
    def zero_stage(self) -> int | None: ...
    @property
    def deepspeed(self) -> str | None: ...
    @property
    def dp_shard(self) -> int: ...
    @property
    def dp_replicate(self) -> int | None: ...
    @property
    def tp_size(self) -> int: ...
    @property
    def ep_size(self) -> int: ...
    @property
    def sp_size(self) -> int: ...
    @property
    def bf16(self) -> bool: ...
    @property
    def dtype(self) -> object: ...
    @property
    def max_grad_norm(self) -> float | None: ...
    @property
    def gradient_accumulation_steps(self) -> int: ...
    @property
    def per_device_train_batch_size(self) -> int: ...
    @property
    def master_weights(self) -> bool: ...


@dataclass(frozen=True)
class ZeroChoice:
    """The stage of ZeRO, what DeepSpeed is told beside it, and what of a file is not used here."""

    stage: int
    entries: Mapping[str, object] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


def zero_problems(config: DeepSpeedSettings, *, trunk: str, critics: int) -> Iterator[Problem]:
    """Settings that clash with an engine of DeepSpeed for each network that trains."""
    if config.zero_stage is not None and config.zero_stage not in STAGES:
        yield Problem(f"zero_stage = {config.zero_stage}: 2 or 3 is needed", ("zero_stage",))
    if config.zero_stage is None and config.deepspeed is None:
        return
    asked = "zero_stage" if config.zero_stage is not None else "deepspeed"
    if config.dp_shard != 1 or config.dp_replicate is not None:
        yield Problem(
            f"{asked} puts the networks under DeepSpeed, and dp_shard and dp_replicate under FSDP2: give one of them",
            (asked, "dp_shard", "dp_replicate"),
        )
    if config.tp_size > 1 or config.ep_size > 1 or config.sp_size > 1:
        yield Problem(
            f"{asked} and passes that processes make together (tp_size, ep_size, sp_size) are not built together: use "
            "dp_shard = -1 with them",
            (asked, "tp_size", "ep_size", "sp_size"),
        )
    if trunk != "separate":
        yield Problem(
            f"{asked} gives each network an engine of its own, and with critic_trunk = {trunk} policy and critic share "
            "weights: use critic_trunk = separate, or dp_shard = -1",
            (asked, "critic_trunk"),
        )
    if critics > 1:
        yield Problem(
            f"{asked} and critic_models = {critics}: only one critic trains under DeepSpeed; use dp_shard = -1",
            (asked, "critic_models"),
        )
    if not config.master_weights:
        yield Problem(
            f"{asked} and master_weights = false: DeepSpeed trains through float32 masters always",
            (asked, "master_weights"),
        )


def zero_choice(config: DeepSpeedSettings) -> ZeroChoice | None:
    """What the settings ask for, None without ZeRO. Raises ConfigError with all that a file and the settings differ
    in, and with all of it that is not done here."""
    if config.deepspeed is None:
        return None if config.zero_stage is None else ZeroChoice(config.zero_stage)
    place = Path(expanded(config.deepspeed))
    try:
        asked = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed = {place}: no JSON file that can be read ({error})") from error
    if not isinstance(asked, dict):
        raise ConfigError(f"deepspeed = {place}: an object of entries is needed")
    problems = list(_file_problems(asked, config))
    of_zero = asked.get("zero_optimization", {})
    stage = of_zero.get("stage", 0) if isinstance(of_zero, dict) else 0
    if stage not in STAGES:
        problems.append(f"zero_optimization.stage = {stage}: 2 or 3 is needed; without ZeRO leave deepspeed out")
    elif config.zero_stage not in (None, stage):
        problems.append(
            f"zero_optimization.stage = {stage}, and zero_stage = {config.zero_stage}: leave one of them out"
        )
    if problems:
        raise ConfigError("\n".join([f"deepspeed = {place} asks for what this run would not do:",
                                     *(f"  - {problem}" for problem in problems)]))  # fmt: skip
    entries = {name: of_zero[name] for name in PASSED if of_zero.get(name, AUTO) != AUTO}
    unused = [name for name in UNUSED if name in asked] + [name for name in ("optimizer", "scheduler") if name in asked]
    return ZeroChoice(stage, entries, tuple(unused + [name for name in WHOLE if name in of_zero]))


def _file_problems(asked: Mapping[str, object], config: DeepSpeedSettings) -> Iterator[str]:
    """A sentence for every entry that is not done, or done otherwise."""
    same = {
        "gradient_clipping": ("max_grad_norm", config.max_grad_norm),
        "gradient_accumulation_steps": ("gradient_accumulation_steps", config.gradient_accumulation_steps),
        "train_micro_batch_size_per_gpu": ("per_device_train_batch_size", config.per_device_train_batch_size),
    }
    for name, value in asked.items():
        if name in same:
            setting, own = same[name]
            if value not in (AUTO, own):
                yield f"{name} = {value}, and {setting} = {own}: give both the same, or leave {name} to {AUTO}"
        elif name in READ:
            yield from READ[name](value, config)
        elif name not in UNUSED:
            yield f"{name} is not known here: leave it out"


def _zero(value: object, config: DeepSpeedSettings) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield "zero_optimization must be an object of entries"
        return
    for name, entry in value.items():
        if name.startswith("offload_"):
            device = entry.get("device", "none") if isinstance(entry, Mapping) else entry
            if device not in ("none", None, AUTO):
                yield f"zero_optimization.{name} to {device} is not built: leave it out"
        elif name not in ("stage", *PASSED, *WHOLE):
            yield f"zero_optimization.{name} is not known here: leave it out"


def _bf16(value: object, config: DeepSpeedSettings) -> Iterator[str]:
    if _enabled(value) is True and not config.bf16 and "bfloat16" not in str(config.dtype):
        yield "bf16.enabled: give dtype = bfloat16 (weights in bfloat16, float32 masters), or bf16 = true (autocast)"


def _fp16(value: object, config: DeepSpeedSettings) -> Iterator[str]:
    if _enabled(value) is True:
        yield "fp16.enabled: float16 loses small gradients; use bfloat16"


def _ours(value: object, config: DeepSpeedSettings) -> Iterator[str]:
    """Optimizer and schedule are the program's: a file may leave all of them to it."""
    given = value.get("params", {}) if isinstance(value, Mapping) else {}
    fixed = [name for name, entry in given.items() if entry != AUTO] if isinstance(given, Mapping) else ["params"]
    if fixed:
        yield (
            f"{', '.join(fixed)} of an optimizer or schedule: give learning_rate, adam_beta1, adam_beta2, "
            f"adam_epsilon, weight_decay, lr_scheduler_type, warmup_steps, and leave these to {AUTO}"
        )


def _batch(value: object, config: DeepSpeedSettings) -> Iterator[str]:
    if value != AUTO:
        yield f"train_batch_size = {value}: batch_size and num_mini_batches say what a step has; leave it to {AUTO}"


def _enabled(value: object) -> object:
    return value.get("enabled", False) if isinstance(value, Mapping) else value


READ: Mapping[str, Callable[[object, DeepSpeedSettings], Iterator[str]]] = {
    "zero_optimization": _zero, "bf16": _bf16, "fp16": _fp16, "optimizer": _ours, "scheduler": _ours,
    "train_batch_size": _batch,
}  # fmt: skip
