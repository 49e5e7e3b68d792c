"""Processes that hold the networks in pieces (FSDP2), in one group or in several alike (HSDP)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from nearstep.models.forward.forward import PassRunner, as_it_is
from nearstep.scale.backend import RoleNetwork, WholeNetwork
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_networks import ShardedNetworks, shard_networks
from nearstep.scale.shards import norm_of_pieces
from nearstep.scale.torch_backend import TorchBackend

Found = TypeVar("Found")
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShardedBackend:
    """Data parallel over all processes; each holds 1/dp_shard of the weights, gradients and moments of a network.

    Roles in `whole_roles`, and every other model (rewards, judges), are whole on each process, as TorchBackend has
    them. What is gathered is the same on all processes of a group, so these run as many passes as each other.
    """

    processes: TorchBackend
    mesh: DeviceMesh  # [dp_shard], or [dp_replicate, dp_shard]
    whole_roles: tuple[str, ...] = ()
    masters: bool = True
    sharded: dict[nn.Module, ShardedNetworks] = field(default_factory=dict)

    @staticmethod
    def over(
        processes: TorchBackend, degrees: Degrees, whole_roles: Sequence[str] = (), *, masters: bool = True
    ) -> "ShardedBackend":
        """The backend of these processes, all of which call this."""
        shape = (degrees.shard,) if degrees.replicate == 1 else (degrees.replicate, degrees.shard)
        names = ("dp_replicate", "dp_shard")[-len(shape) :]
        mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
        return ShardedBackend(processes, mesh, tuple(whole_roles), masters)

    @property
    def rank(self) -> int:
        """See Backend.rank."""
        return self.processes.rank

    @property
    def local_rank(self) -> int:
        """See Backend.local_rank."""
        return self.processes.local_rank

    @property
    def world_size(self) -> int:
        """See Backend.world_size."""
        return self.processes.world_size

    @property
    def device(self) -> torch.device:
        """See Backend.device."""
        return self.processes.device

    @property
    def in_step(self) -> bool:
        """See Backend.in_step."""
        return True

    def place(self, model: nn.Module) -> nn.Module:
        """See Backend.place."""
        return self.processes.place(model)

    def stage(self, model: nn.Module) -> nn.Module:
        """As it was loaded, in the memory of the host: no device need hold a network whole."""
        return model

    def spread(self, networks: Mapping[str, RoleNetwork]) -> dict[str, PassRunner]:
        """See Backend.spread. Networks that share weights are gathered together: layer by layer where they share whole
        layers, as a critic on the policy's trunk does, else all at once."""
        runners: dict[str, PassRunner] = {}
        for together in _sharing(networks):
            models = list(dict.fromkeys(networks[role].model for role in together))
            if any((networks[name].role or name) in self.whole_roles for name in together):
                for model in models:
                    self.processes.place(model)
                runners |= dict.fromkeys(together, as_it_is)
                continue
            layers = all(networks[role].one_pass for role in together)
            found = shard_networks(models, self.mesh, self.device, layers=layers, masters=self.masters, rank=self.rank)
            self.sharded.update(dict.fromkeys(models, found))
            runners |= dict.fromkeys(together, partial(self._run, found))
        return runners

    @contextmanager
    def gathered(self, *networks: nn.Module | None) -> Iterator[None]:
        """See Backend.gathered."""
        parts = [part for network in networks if network is not None for part in network.modules()]
        found = {id(self.sharded[part]): self.sharded[part] for part in parts if part in self.sharded}
        with ExitStack() as stack:
            with self.processes.together("whole weights"):
                for each in found.values():
                    stack.enter_context(each.gathered())
            yield

    def add_up(self, values: Tensor) -> Tensor:
        """See Backend.add_up."""
        return self.processes.add_up(values)

    def gather(self, item: Item) -> list[Item]:
        """See Backend.gather."""
        return self.processes.gather(item)

    def gather_to_main(self, item: Item) -> list[Item]:
        """See Backend.gather_to_main."""
        return self.processes.gather_to_main(item)

    def backward(self, loss: Tensor) -> None:
        """See Backend.backward."""
        with self.processes.together("a backward pass"):
            loss.backward()

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See Backend.add_up_gradients. Those of pieces were summed in the backward passes."""
        self.processes.add_up_gradients([each for each in parameters if not isinstance(each, DTensor)])

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """See Backend.gradient_norm."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        shards = self.mesh if self.mesh.ndim == 1 else self.mesh["dp_shard"]
        with self.processes.together("the norm of gradients"):
            return norm_of_pieces(gradients, shards, self.device)

    def whole(self, model: nn.Module) -> WholeNetwork | None:
        """See Backend.whole."""
        if model not in self.sharded:
            return self.processes.whole(model)
        with self.processes.together("whole weights on rank 0"):
            found = self.sharded[model].whole(model)
        return None if found is None else WholeNetwork(found, is_copy=True)

    def wait_for_all(self) -> None:
        """See Backend.wait_for_all."""
        self.processes.wait_for_all()

    def close(self) -> None:
        """See Backend.close."""
        self.processes.close()

    def _run(self, networks: ShardedNetworks, one_pass: Callable[[], Found]) -> Found:
        with self.processes.together("a forward pass"):
            return networks.run(one_pass)


def _sharing(networks: Mapping[str, RoleNetwork]) -> list[list[str]]:
    """Roles by which of them have a weight in common, in order."""
    groups: list[tuple[list[str], set[int]]] = []
    for role, network in networks.items():
        weights = {id(weight) for weight in network.model.parameters()}
        joined = [group for group in groups if group[1] & weights]
        groups = [group for group in groups if not group[1] & weights]
        roles = [each for group in joined for each in group[0]]
        groups.append(([*roles, role], weights.union(*(group[1] for group in joined))))
    return [roles for roles, _ in groups]
