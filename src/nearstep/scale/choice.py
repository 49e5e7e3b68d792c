"""Which backend a run is on, by its settings and by how many processes there are."""

from nearstep.config.parallel_rules import check_tensor_parallel
from nearstep.config.ppo import PPOConfig
from nearstep.scale.backend import Backend
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import torch_backend


def make_backend(config: PPOConfig) -> Backend:
    """The backend that the settings name. Raises ConfigError where they do not fit the processes."""
    processes = torch_backend(use_cpu=config.use_cpu)
    degrees = Degrees.of(config, processes.world_size)
    if degrees.shard == 1 and degrees.tensor == 1:
        return processes
    if degrees.tensor > 1:
        check_tensor_parallel(config)
    return ShardedBackend.over(processes, degrees, config.whole_roles, masters=config.master_weights)
