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
    whole_roles: tuple[Literal["policy", "reference", "value", "teacher"], ...] = option(
        (), "networks that every process holds whole all the same: policy, reference, value, teacher"
    )
    sp_size: int = option(
        1,
        "processes that lay the tokens of a row over each other while they train, for rows too long for one (sequence "
        "parallelism by all-to-all); dp_shard may lie over the same processes",
        at_least=1,
    )
