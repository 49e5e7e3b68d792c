"""Which backend a run is on, by its settings and by how many processes there are."""

from nearstep.config.ppo import PPOConfig
from nearstep.scale.backend import Backend
from nearstep.scale.degrees import Degrees
from nearstep.scale.sequence_groups import SequenceBackend
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import TorchBackend, torch_backend


def make_backend(config: PPOConfig) -> Backend:
    """The backend that the settings name. Raises ConfigError where they do not fit the processes."""
    processes = torch_backend(use_cpu=config.use_cpu)
    degrees = Degrees.of(config, processes.world_size)
    backend: TorchBackend | ShardedBackend = processes
    if degrees.shard > 1:
        backend = ShardedBackend.over(processes, degrees, config.whole_roles, masters=config.master_weights)
    return backend if config.sp_size == 1 else SequenceBackend.over(backend, config.sp_size)
