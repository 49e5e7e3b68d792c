"""What launchers ask for in the environment: what a run does not do is refused, never ignored.

The variables are those of accelerate 1.15 (utils/launch.py), torchrun, MPI and Slurm. Standard library only.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from nearstep.common.errors import ConfigError, shorten
from nearstep.config.old_names import SHARDED


@runtime_checkable
class LaunchedSettings(Protocol):
    """The settings that say what launchers may ask for too."""

    @property
    def bf16(self) -> bool: ...

    @property
    def gradient_accumulation_steps(self) -> int: ...

    @property
    def max_grad_norm(self) -> float | None: ...


YES = ("1", "true", "yes", "on", "t", "y")
NOTHING = ("", "no", "none", "false", "0", "1")  # what launchers write for "not asked for"
# By the beginnings of names: what the variables ask for, and what to do.
DEEPSPEED = (
    "ACCELERATE_USE_DEEPSPEED|ACCELERATE_DEEPSPEED_",
    f"DeepSpeed: {SHARDED}. Leave DeepSpeed out of the launcher's configuration",
)
FSDP = ("ACCELERATE_USE_FSDP|FSDP_", f"FSDP: {SHARDED}. Leave FSDP out of the launcher's configuration")
FAMILIES = (
    DEEPSPEED,
    FSDP,
    ("ACCELERATE_USE_MEGATRON_LM|MEGATRON_LM_", f"Megatron-LM: {SHARDED}"),
    ("ACCELERATE_USE_PARALLELISM_CONFIG|PARALLELISM_CONFIG_", f"parallelism beyond data: {SHARDED}"),
    ("ACCELERATE_DYNAMO_BACKEND", "compiled models: models are not compiled here; leave dynamo out"),
    ("ACCELERATE_CPU_AFFINITY", "cores bound to processes: bind them with numactl or taskset"),
    ("ACCELERATE_DOWNCAST_BF16|XLA_USE_BF16|XLA_DOWNCAST_BF16", "bfloat16 on a TPU: runs are on CUDA or a CPU"),
    (
        "ACCELERATE_USE_(?!CPU|DEEPSPEED|FSDP|MEGATRON_LM|PARALLELISM_CONFIG)",
        "what is not done here; leave it out",
    ),
)
# Sizes of jobs whose processes do not know of each other unless WORLD_SIZE is set too.
JOB_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")


def check_launch(environment: Mapping[str, str], config: LaunchedSettings) -> None:
    """Raise ConfigError for everything that a launcher asked for and this run would not do."""
    if problems := list(launch_problems(environment, config)):
        raise ConfigError(
            "\n".join(
                ["the launcher asks for what this run would not do:", *(f"  - {problem}" for problem in problems)]
            )
        )


def cpu_is_asked_for(environment: Mapping[str, str]) -> bool:
    """Whether accelerate was told to stay on the CPU."""
    return environment.get("ACCELERATE_USE_CPU", "").lower() in YES


def asked_variables(environment: Mapping[str, str], family: tuple[str, str]) -> list[str]:
    """The variables of a family that ask for something."""
    return [name for name in environment if re.match(family[0], name) and _asks(name, environment[name])]


def launch_problems(
    environment: Mapping[str, str], config: LaunchedSettings, families: Sequence[tuple[str, str]] = FAMILIES
) -> Iterator[str]:
    """A sentence for everything that is asked for and not done."""
    for family in families:
        sentence, asked = family[1], asked_variables(environment, family)
        if asked:
            shown = ", ".join(f"{name}={environment[name]}" for name in asked[:2]) + (", …" if len(asked) > 2 else "")
            yield f"{shown} asks for {sentence}"
    yield from _precision_problems(environment.get("ACCELERATE_MIXED_PRECISION", ""), config)
    for name, setting, own in (
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "gradient_accumulation_steps", config.gradient_accumulation_steps),
        ("ACCELERATE_GRADIENT_CLIPPING", "max_grad_norm", config.max_grad_norm),
    ):
        asked_for = environment.get(name, "")
        if asked_for.lower() not in NOTHING and _number(asked_for) != own:
            yield f"{name}={shorten(asked_for)}, and {setting} is {own}: give {setting} = {asked_for}"
    yield from _process_problems(environment)


def _asks(name: str, value: str) -> bool:
    """Whether a variable asks for anything; switches of accelerate are true or false, other settings stand alone."""
    if name.startswith(("ACCELERATE_USE_", "ACCELERATE_CPU_AFFINITY", "XLA_", "ACCELERATE_DOWNCAST")):
        return value.lower() in YES
    return value.lower() not in NOTHING


def _precision_problems(asked: str, config: LaunchedSettings) -> Iterator[str]:
    if asked.lower() == "bf16" and not config.bf16:
        yield "ACCELERATE_MIXED_PRECISION=bf16: give bf16 = true, which does that"
    elif asked.lower() not in (*NOTHING, "bf16"):
        yield f"ACCELERATE_MIXED_PRECISION={asked}: mixed precision here is bfloat16, by bf16 = true"


def _process_problems(environment: Mapping[str, str]) -> Iterator[str]:
    """Several processes that were asked for and did not come, or that would not find each other."""
    came = int(_number(environment.get("WORLD_SIZE", "1")) or 1)
    for name in JOB_SIZES:
        size = int(_number(environment.get(name, "")) or 1)
        if size > came:
            yield (
                f"{name}={size}: {size} processes are meant, and they would not know of each other, for WORLD_SIZE "
                f"is {came}. Start one task, with torchrun --nproc_per_node {size}; or unset {name} for a single run"
            )
            return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if came > 1 and missing:
        yield (f"WORLD_SIZE={came}, but not {', '.join(missing)}: start the processes with torchrun, which sets all")
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environment and "MASTER_PORT" in environment
    if came == 1 and by_accelerate and "WORLD_SIZE" not in environment:
        yield (
            "accelerate launch was told of several processes and started one: on CPUs it needs mpirun for them. "
            "Start them with torchrun --nproc_per_node, or with a configuration as accelerate_configs/multi_cpu.yaml "
            "in the examples (distributed_type: MULTI_GPU, use_cpu: true)"
        )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
