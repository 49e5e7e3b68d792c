"""How many processes hold one copy of the networks together, and how many copies there are."""

from dataclasses import dataclass

from nearstep.common.errors import ConfigError
from nearstep.config.scaling import ALL_PROCESSES, ScalingSettings


@dataclass(frozen=True)
class Degrees:
    """replicate × shard × tensor processes: so many copies, each in so many pieces, of layers divided so often."""

    replicate: int
    shard: int
    tensor: int = 1
    experts: int = 1  # of the processes of one tensor-parallel group, how many share out the experts

    @staticmethod
    def of(config: ScalingSettings, processes: int) -> "Degrees":
        """Those of a run. Raises ConfigError where they do not make up the number of processes."""
        replicate, shard, tensor = config.dp_replicate, config.dp_shard, config.tp_size
        groups = processes // tensor
        if shard == ALL_PROCESSES:
            shard = groups // (replicate or 1)
        whole = replicate if replicate is not None else groups // max(shard, 1)
        if shard < 1 or whole * shard * tensor != processes or whole < 1:
            given = f"dp_shard = {config.dp_shard}"
            given += "" if replicate is None else f" and dp_replicate = {replicate}"
            given += "" if tensor == 1 else f" and tp_size = {tensor}"
            product = "dp_replicate × dp_shard" + ("" if tensor == 1 else " × tp_size")
            raise ConfigError(
                f"{given} with {processes} process{'es' * (processes > 1)}: {product} must be the number "
                "of processes, and dp_replicate is what is left where it is not given. Start as many with "
                f"torchrun --nproc_per_node, or leave {'dp_shard' if tensor == 1 else 'tp_size'} out"
            )
        if config.ep_size not in (1, tensor):
            raise ConfigError(
                f"ep_size = {config.ep_size} with tp_size = {tensor}: experts lie on the processes that compute "
                "together, which have the same rows. Give both the same number, or leave ep_size out: dp_shard divides "
                "the memory of experts too"
            )
        return Degrees(whole, shard, tensor, config.ep_size)
