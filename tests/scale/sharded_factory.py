"""A backend of networks in pieces, for `nearstep check` under torchrun."""

from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import torch_backend


def make() -> ShardedBackend:
    """Over all processes."""
    processes = torch_backend(use_cpu=True)
    return ShardedBackend.over(processes, Degrees(1, processes.world_size))
