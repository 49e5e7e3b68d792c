"""What accelerate asks for in the environment, as settings of a run; what it asks for beside them is refused or said.

The variables are those of accelerate 1.15 (utils/launch.py). Standard library only.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from nearstep.common.errors import ConfigError
from nearstep.common.telling import tell
from nearstep.config.launcher import DEEPSPEED, FAMILIES, FSDP, NOTHING, YES, asked_variables, launch_problems
from nearstep.config.scaling import ALL_PROCESSES
from nearstep.config.sections import AllSettings

ConfigT = TypeVar("ConfigT", bound=AllSettings)
STRATEGIES = {"1": "FULL_SHARD", "2": "SHARD_GRAD_OP", "3": "NO_SHARD", "4": "HYBRID_SHARD", "5": "HYBRID_SHARD_ZERO2"}
ELSEWHERE = [family for family in FAMILIES if family not in (DEEPSPEED, FSDP)]


@dataclass
class Launched:
    """What a launcher's variables come to: settings, what nothing here reads, and what cannot be."""

    settings: dict[str, object] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def as_launched(environment: Mapping[str, str], config: ConfigT) -> ConfigT:
    """The settings with what the launcher asks for and they leave open; a line says what was taken, another what was
    not. Raises ConfigError for everything that is asked for and would not be done."""
    found, taken = _read(environment, config)
    if found.problems:
        raise ConfigError(
            "\n".join(
                ["the launcher asks for what this run would not do:", *(f"  - {problem}" for problem in found.problems)]
            )
        )
    if found.settings:
        tell("the launcher asks for " + ", ".join(f"{name} = {_word(value)}" for name, value in found.settings.items()))
    if found.unused:
        tell(f"not used here of what the launcher set: {', '.join(found.unused)}")
    return taken


def problems_as_launched(environment: Mapping[str, str], config: AllSettings) -> list[str]:
    """A sentence for everything that the launcher asks for and a run with these settings would not do."""
    return _read(environment, config)[0].problems


def _read(environment: Mapping[str, str], config: ConfigT) -> tuple[Launched, ConfigT]:
    """What the launcher asks for, and the settings with it."""
    found = Launched()
    if environment.get("ACCELERATE_MIXED_PRECISION", "").lower() == "bf16" and not config.bf16:
        found.settings["bf16"] = True
    deepspeed, fsdp = asked_variables(environment, DEEPSPEED), asked_variables(environment, FSDP)
    if deepspeed:
        _deepspeed(environment, config, found)
    if fsdp:
        _fsdp(environment, config, found)
    if deepspeed and fsdp:
        found.problems.append("DeepSpeed and FSDP at once: leave one of them out of the launcher's configuration")
    taken = config
    if not found.problems:
        with warnings.catch_warnings():  # what is to be said of these settings was said when they were made
            warnings.simplefilter("ignore")
            taken = replace(config, **found.settings)  # type: ignore[arg-type]
    found.problems += launch_problems(environment, taken, ELSEWHERE)
    return found, taken


def _deepspeed(environment: Mapping[str, str], config: AllSettings, found: Launched) -> None:
    stage = environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    place = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "")
    has_place = place.lower() not in NOTHING
    if config.dp_shard != 1 or config.dp_replicate is not None:
        found.problems.append(
            f"DeepSpeed, and dp_shard = {config.dp_shard} is FSDP2: leave dp_shard and dp_replicate out, or DeepSpeed "
            "out of the launcher's configuration"
        )
    if has_place:
        found.problems += _settle("deepspeed", place, config.deepspeed, found)
    elif stage in ("2", "3"):
        found.problems += _settle("zero_stage", int(stage), config.zero_stage, found)
    elif stage in ("", "0"):
        if config.zero_stage is None and config.deepspeed is None and stage == "":
            found.problems.append("DeepSpeed without a stage: give zero_stage = 2 or 3, or set it for the launcher")
    else:
        found.problems.append(f"ZeRO stage {stage}: 2 and 3 are done here; 2 keeps all that 1 does in pieces, and more")
    for role, name in (("optimizer", "OFFLOAD_OPTIMIZER_DEVICE"), ("weights", "OFFLOAD_PARAM_DEVICE")):
        device = environment.get(f"ACCELERATE_DEEPSPEED_{name}", "none").lower()
        if device not in NOTHING:
            found.problems.append(f"DeepSpeed's {role} on {device}: not built; leave the offload out")
    read = ("ZERO_STAGE", "CONFIG_FILE", "OFFLOAD_OPTIMIZER_DEVICE", "OFFLOAD_PARAM_DEVICE")
    found.unused += _rest(environment, "ACCELERATE_DEEPSPEED_", read)


def _fsdp(environment: Mapping[str, str], config: AllSettings, found: Launched) -> None:
    strategy = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD")
    strategy = STRATEGIES.get(strategy, strategy)
    if config.zero_stage is not None or config.deepspeed is not None:
        found.problems.append(
            "FSDP, and zero_stage or deepspeed is given: leave one of them out, here or in the launcher's configuration"
        )
    elif strategy in ("FULL_SHARD", "SHARD_GRAD_OP"):
        if config.dp_shard == 1:  # a size that is given says more
            found.settings["dp_shard"] = ALL_PROCESSES
    elif strategy.startswith("HYBRID_SHARD"):
        if config.dp_shard == 1:
            found.settings["dp_shard"] = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    elif strategy != "NO_SHARD":
        found.problems.append(f"FSDP_SHARDING_STRATEGY={strategy}: FULL_SHARD and HYBRID_SHARD are done here")
    if environment.get("FSDP_OFFLOAD_PARAMS", "").lower() in YES:
        found.problems.append("FSDP_OFFLOAD_PARAMS: weights on the CPU are not built; leave the offload out")
    if environment.get("FSDP_IGNORED_MODULES", "").lower() not in NOTHING:
        found.problems.append("FSDP_IGNORED_MODULES: whole_roles says which networks stay whole")
    if environment.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() in YES and not config.gradient_checkpointing:
        found.settings["gradient_checkpointing"] = True
    read = ("SHARDING_STRATEGY", "OFFLOAD_PARAMS", "IGNORED_MODULES", "ACTIVATION_CHECKPOINTING", "VERSION")
    found.unused += _rest(environment, "FSDP_", read)


def _settle(name: str, asked: object, own: object, found: Launched) -> Iterator[str]:
    """A setting takes what is asked for where it is not given; another value is a problem."""
    if own is None:
        found.settings[name] = asked
    elif own != asked:
        yield f"{name} = {asked}, and here {name} = {own} is given: leave one of them out"


def _rest(environment: Mapping[str, str], beginning: str, read: tuple[str, ...]) -> list[str]:
    """Variables of a family that ask for something and are not read."""
    names = {f"{beginning}{name}" for name in read}
    return sorted(
        name
        for name, value in environment.items()
        if name.startswith(beginning) and name not in names and value.lower() not in NOTHING
    )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
