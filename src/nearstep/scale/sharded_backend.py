"""Processes that hold the networks in pieces (FSDP2), in one group or in several alike (HSDP), and that may compute
every layer together (tensor parallel)."""

import logging
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
from nearstep.scale.layer_plan import LayerPlan, require_transformers
from nearstep.scale.sharded_networks import ShardedNetworks, shard_networks
from nearstep.scale.shards import lies_over, norm_of_pieces, own_piece
from nearstep.scale.shares import Told, from_first, take_of_first
from nearstep.scale.tensor_parallel import LayerDivision
from nearstep.scale.torch_backend import TorchBackend

Found = TypeVar("Found")
Item = TypeVar("Item")


@dataclass(frozen=True)
class ShardedBackend:
    """Data parallel over all processes; each holds 1/dp_shard of the weights, gradients and moments of a network.

    With a `tensor` mesh its processes have a part of every layer each, of which dp_shard makes pieces; they have the
    same share of the rows, and do everything together.

    Roles in `whole_roles`, and every other model (rewards, judges), are whole on each process, as TorchBackend has
    them. What is gathered is the same on all processes of a group, so these run as many passes as each other.
    """

    processes: TorchBackend
    mesh: DeviceMesh  # [dp_shard], or [dp_replicate, dp_shard]
    tensor: DeviceMesh | None = None  # of the processes that compute layers together
    experts: bool = False  # whether each of these has whole experts
    whole_roles: tuple[str, ...] = ()
    masters: bool = True
    sharded: dict[nn.Module, ShardedNetworks] = field(default_factory=dict)

    @staticmethod
    def over(
        processes: TorchBackend, degrees: Degrees, whole_roles: Sequence[str] = (), *, masters: bool = True
    ) -> "ShardedBackend":
        """The backend of these processes, all of which call this. Those that compute together are neighbours."""
        shape = (degrees.shard,) if degrees.replicate == 1 else (degrees.replicate, degrees.shard)
        names = ("dp_replicate", "dp_shard")[-len(shape) :]
        if degrees.tensor == 1:
            mesh = init_device_mesh(processes.device.type, shape, mesh_dim_names=names)
            return ShardedBackend(processes, mesh, whole_roles=tuple(whole_roles), masters=masters)
        require_transformers()
        whole = init_device_mesh(processes.device.type, (*shape, degrees.tensor), mesh_dim_names=(*names, "tp"))
        # Gathering along two dimensions in turn is what is wanted, and the order does not matter.
        logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
        return ShardedBackend(processes, whole[names], whole["tp"], degrees.experts > 1, tuple(whole_roles), masters)

    @property
    def rank(self) -> int:
        """See Backend.rank."""
        return self.processes.rank // self._together

    @property
    def is_main(self) -> bool:
        """See Backend.is_main."""
        return self.processes.is_main

    @property
    def leads(self) -> bool:
        """See Backend.leads."""
        return self.processes.rank % self._together == 0

    @property
    def local_rank(self) -> int:
        """See Backend.local_rank."""
        return self.processes.local_rank

    @property
    def world_size(self) -> int:
        """See Backend.world_size."""
        return self.processes.world_size // self._together

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
            division = None
            if self.tensor is not None:
                named = [(networks[name].role or name, networks[name].model) for name in together]
                plan = LayerPlan.of(named, self._together, experts=self.experts)
                division = LayerDivision(plan, self.tensor)
            found = shard_networks(
                models, self.mesh, self.device, layers=layers, masters=self.masters, main=self.is_main,
                division=division,
            )  # fmt: skip
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
        return self.processes.add_up(values if self.leads else torch.zeros_like(values))

    def gather(self, item: Item) -> list[Item]:
        """See Backend.gather."""
        return self.processes.gather(item)[:: self._together]

    def gather_to_main(self, item: Item) -> list[Item]:
        """See Backend.gather_to_main."""
        return self.processes.gather_to_main(item)[:: self._together]

    def everywhere(self, item: Item) -> list[Item]:
        """See Backend.everywhere."""
        return self.processes.gather(item)

    def once(self, ask: Callable[[], Item]) -> Item:
        """See Backend.once."""
        if self.tensor is None:
            return ask()
        if not self.leads:
            return self._told(None, self.tensor).result()
        try:
            answer = ask()
        except Exception as error:
            self._told(Told.failed(error), self.tensor)
            raise
        self._told(Told((answer,)), self.tensor)
        return answer

    def _told(self, outcome: Told[Item] | None, tensor: DeviceMesh) -> Told[Item]:
        with self.processes.together("what another process was answered"):
            return from_first(outcome, tensor.get_group())

    def backward(self, loss: Tensor) -> None:
        """See Backend.backward."""
        with self.processes.together("a backward pass"):
            loss.backward()

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See Backend.add_up_gradients. Those of pieces were summed in the backward passes.

        What processes that compute together have in common has one gradient on all of them; the first one's counts, so
        that rounding cannot lead them apart.
        """
        wholes = [each for each in parameters if not isinstance(each, DTensor)]
        if not self.leads:
            for each in wholes:
                each.grad = None if each.grad is None else torch.zeros_like(each.grad)
        self.processes.add_up_gradients(wholes)
        if self.tensor is not None:
            common = [each.grad for each in parameters if isinstance(each, DTensor) and each.grad is not None]
            with self.processes.together("the gradients of what all have"):
                take_of_first(
                    [own_piece(each) for each in common if not lies_over(each, "tp")], self.tensor.get_group()
                )

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """See Backend.gradient_norm."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with self.processes.together("the norm of gradients"):
            return norm_of_pieces(gradients, self.device)

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

    @property
    def _together(self) -> int:
        """How many processes have one share of the rows."""
        return 1 if self.tensor is None else self.tensor.size()

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
