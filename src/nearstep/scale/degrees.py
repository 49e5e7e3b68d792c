"""How many processes hold one copy of the networks together, and how many copies there are."""

from dataclasses import dataclass

from nearstep.common.errors import ConfigError
from nearstep.config.scaling import ALL_PROCESSES, ScalingSettings


@dataclass(frozen=True)
class Degrees:
    """replicate × shard processes: so many copies, each in so many pieces."""

    replicate: int
    shard: int

    @staticmethod
    def of(config: ScalingSettings, processes: int) -> "Degrees":
        """Those of a run. Raises ConfigError where they do not make up the number of processes."""
        replicate, shard = config.dp_replicate, config.dp_shard
        if shard == ALL_PROCESSES:
            shard = processes // (replicate or 1)
        if shard < 1 or processes % shard or (replicate or processes // shard) * shard != processes:
            given = f"dp_shard = {config.dp_shard}"
            given += "" if replicate is None else f" and dp_replicate = {replicate}"
            raise ConfigError(
                f"{given} with {processes} process{'es' * (processes > 1)}: dp_replicate × dp_shard must be the number "
                "of processes, and dp_replicate is what is left where it is not given. Start as many with "
                "torchrun --nproc_per_node, or leave dp_shard out"
            )
        return Degrees(processes // shard, shard)
