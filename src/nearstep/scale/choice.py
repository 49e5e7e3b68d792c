"""Which backend a run is on, by its settings and by how many processes there are."""

from nearstep.common.telling import tell
from nearstep.config.deepspeed import ZeroChoice, zero_choice
from nearstep.config.parallel_rules import check_tensor_parallel
from nearstep.config.ppo import PPOConfig
from nearstep.scale.backend import Backend
from nearstep.scale.degrees import Degrees
from nearstep.scale.sequence_groups import SequenceBackend
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import TorchBackend, torch_backend
from nearstep.scale.zero_backend import ZeroBackend


def make_backend(config: PPOConfig) -> Backend:
    """The backend that the settings name. Raises ConfigError where they do not fit the processes."""
    processes = torch_backend(use_cpu=config.use_cpu)
    zero = zero_choice(config)
    if zero is not None:
        return _under_deepspeed(processes, zero, config.whole_roles)
    degrees = Degrees.of(config, processes.world_size)
    if degrees.tensor > 1:
        check_tensor_parallel(config)
    backend: TorchBackend | ShardedBackend = processes
    if degrees.shard > 1 or degrees.tensor > 1:
        backend = ShardedBackend.over(processes, degrees, config.whole_roles, masters=config.master_weights)
    return backend if config.sp_size == 1 else SequenceBackend.over(backend, config.sp_size)


def _under_deepspeed(processes: TorchBackend, zero: ZeroChoice, whole_roles: tuple[str, ...]) -> Backend:
    if zero.unused:
        tell(f"not used here of the DeepSpeed file: {', '.join(zero.unused)}")
    if processes.world_size == 1:
        tell(f"ZeRO-{zero.stage}: one process has nothing to divide; it holds the networks whole, without DeepSpeed")
        return processes
    return ZeroBackend.over(processes, zero.stage, zero.entries, whole_roles)
