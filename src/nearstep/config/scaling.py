"""How a run's networks lie over its processes."""

from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Settings, option

ALL_PROCESSES = -1


@dataclass(frozen=True, kw_only=True)
class ScalingSettings(Settings):
    """How networks lie over several processes. None of it changes a number of the run."""

    dp_shard: int = option(
        1,
        "processes that hold one copy of the networks together, a piece of every weight, gradient and moment each "
        "(FSDP2); -1 for all of them",
        at_least=-1,
    )
    dp_replicate: int | None = option(
        None, "such copies (HSDP), each on dp_shard processes; what the processes make up if not given", at_least=1
    )
    tp_size: int = option(
        1,
        "processes that compute every layer together, a part of its heads and columns each (tensor parallel), by the "
        "plan of the model's family; they play the same rows",
        at_least=1,
    )
    ep_size: int = option(
        1,
        "processes that hold a part of the experts each (expert parallel), of a mixture of experts; those of tp_size",
        at_least=1,
    )
    sp_size: int = option(
        1,
        "processes that lay the tokens of a row over each other while they train, for rows too long for one (sequence "
        "parallelism by all-to-all); dp_shard may lie over the same processes",
        at_least=1,
    )
    whole_roles: tuple[Literal["policy", "reference", "value", "teacher"], ...] = option(
        (), "networks that every process holds whole all the same: policy, reference, value, teacher"
    )
    zero_stage: int | None = option(
        None, "stage of DeepSpeed's ZeRO: 2 divides gradients and moments over all processes, 3 weights too"
    )
    deepspeed: str | None = option(
        None, "DeepSpeed's configuration file (JSON); what it leaves to `auto` is as the settings say", is_place=True
    )


def divided_by(config: ScalingSettings) -> str | None:
    """The setting that deals weights or moments of a network out over processes; None where each has the whole."""
    asked = {
        "dp_shard": config.dp_shard != 1, "tp_size": config.tp_size > 1, "zero_stage": config.zero_stage is not None,
        "deepspeed": config.deepspeed is not None,
    }  # fmt: skip
    return next((name for name, is_asked in asked.items() if is_asked), None)
