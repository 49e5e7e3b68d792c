"""Processes whose networks train under DeepSpeed: gradients and moments in pieces (ZeRO-2), weights too (ZeRO-3)."""

import atexit
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.plugins import need_package
from nearstep.models.forward.forward import PassRunner, as_it_is
from nearstep.scale.backend import RoleNetwork, WholeNetwork
from nearstep.scale.sharded_networks import on_meta
from nearstep.scale.shards import norm_over_processes
from nearstep.scale.torch_backend import TorchBackend
from nearstep.scale.zero_networks import DIVIDES_WEIGHTS, ZeroNetwork, with_engine
from nearstep.scale.zero_pieces import FrozenPieces, in_pieces

Found = TypeVar("Found")
Item = TypeVar("Item")
FROZEN = ("reference", "teacher")
BUCKET = 500_000_000  # numbers in one message, DeepSpeed's default
TRAINED_TYPES = (torch.float32, torch.bfloat16)


@dataclass
class ZeroBackend:
    """Data parallel over all processes, with an engine of DeepSpeed for each network that trains.

    Roles in `whole_roles`, and every other model (rewards, judges), are whole on each process, as TorchBackend has
    them; with ZeRO-2 frozen roles are whole too. Engines sum gradients in each backward pass, so processes run as many
    passes as each other.
    """

    processes: TorchBackend
    zero_stage: int
    entries: Mapping[str, object] = field(default_factory=dict)  # of `zero_optimization`, beside the stage
    whole_roles: tuple[str, ...] = ()
    engines: dict[nn.Module, ZeroNetwork] = field(default_factory=dict)
    frozen: dict[nn.Module, FrozenPieces] = field(default_factory=dict)
    # Networks that were spread and learn: they are given an engine once there is an optimizer.
    _learning: dict[nn.Module, RoleNetwork] = field(default_factory=dict)
    _unsplit: dict[nn.Module, nn.Module] = field(default_factory=dict)  # without weights; on rank 0 alone
    _passed: ZeroNetwork | None = None  # whose pass the next loss is of

    @staticmethod
    def over(
        processes: TorchBackend, stage: int, entries: Mapping[str, object], whole_roles: Sequence[str]
    ) -> "ZeroBackend":
        """The backend of these processes. Raises ConfigError where DeepSpeed is not installed."""
        need_package("deepspeed", "deepspeed", f"zero_stage = {stage}", ConfigError)
        if processes.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read at the import
        import deepspeed

        # DeepSpeed calls collectives of torch by names that torch 2.13 calls old.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
        deepspeed.utils.logger.setLevel(logging.ERROR)  # its warnings are of its own workings
        deepspeed.init_distributed(dist_init_required=False)
        backend = ZeroBackend(processes, stage, entries, tuple(whole_roles))
        atexit.register(backend.close)  # before the process group goes, which engines still hold
        return backend

    @property
    def rank(self) -> int:
        """See Backend.rank."""
        return self.processes.rank

    @property
    def is_main(self) -> bool:
        """See Backend.is_main."""
        return self.processes.is_main

    @property
    def leads(self) -> bool:
        """See Backend.leads."""
        return True

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
        """See Backend.stage."""
        return model

    def spread(self, networks: Mapping[str, RoleNetwork]) -> dict[str, PassRunner]:
        """See Backend.spread. Raises ModelError for networks that share weights: an engine has all of its own."""
        _refuse_shared(networks)
        runners: dict[str, PassRunner] = {}
        for name, network in networks.items():
            model, role = network.model, network.role or name
            if model in self._learning:  # a policy that is its own reference, its adapters off
                runners[name] = partial(self._run, model)
                continue
            self.processes.place(model)
            if role in self.whole_roles or (role in FROZEN and self.zero_stage < DIVIDES_WEIGHTS):
                runners[name] = as_it_is
            elif role in FROZEN:
                self.frozen[model] = self.frozen.get(model) or in_pieces(model, self._config(model))
                runners[name] = self.frozen[model].run
            else:
                self._learning[model] = network
                if self.zero_stage == DIVIDES_WEIGHTS and self.rank == 0:
                    self._unsplit[model] = on_meta(model)
                runners[name] = partial(self._run, model)
        return runners

    def stepper(
        self, network: nn.Module, weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> ZeroNetwork | None:
        """See MakesSteppers.stepper."""
        if network not in self._learning:
            known = {id(weight) for model in self._learning for weight in model.parameters()}
            if any(id(weight) in known for weight in weights):
                raise ModelError(
                    f"zero_stage = {self.zero_stage}: one optimizer for a part of a network, or for several networks, "
                    "and DeepSpeed has one engine for each network that trains. Use dp_shard = -1 (FSDP2)"
                )
            return None
        with self.processes.together("DeepSpeed's engine"):
            self.engines[network] = with_engine(
                network, weights, optimizer, self._config(network), self.zero_stage,
                layers=self._learning[network].one_pass,
            )  # fmt: skip
        return self.engines[network]

    @contextmanager
    def gathered(self, *networks: nn.Module | None) -> Iterator[None]:
        """See Backend.gathered."""
        found: dict[int, ZeroNetwork | FrozenPieces] = {}
        for network in (part for each in networks if each is not None for part in each.modules()):
            if network in self.engines:
                found[id(network)] = self.engines[network]
            elif network in self.frozen:
                found[id(network)] = self.frozen[network]
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

    def everywhere(self, item: Item) -> list[Item]:
        """See Backend.everywhere."""
        return self.processes.gather(item)

    def once(self, ask: Callable[[], Item]) -> Item:
        """See Backend.once."""
        return ask()

    def gather_to_main(self, item: Item) -> list[Item]:
        """See Backend.gather_to_main."""
        return self.processes.gather_to_main(item)

    def backward(self, loss: Tensor) -> None:
        """See Backend.backward: of the network whose pass was the last."""
        network, self._passed = self._passed, None
        with self.processes.together("a backward pass"):
            if network is None:
                loss.backward()
            else:
                network.backward(loss)

    def add_up_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See Backend.add_up_gradients. Engines have summed theirs in the backward passes."""
        network = self._network_of(parameters)
        if network is None:
            self.processes.add_up_gradients(parameters)
        else:
            network.add_up_gradients()

    def gradient_norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """See Backend.gradient_norm."""
        if self._network_of(parameters) is None:
            return self.processes.gradient_norm(parameters)
        with self.processes.together("the norm of gradients"):
            return norm_over_processes([each.grad for each in parameters if each.grad is not None], self.device)

    def whole(self, model: nn.Module) -> WholeNetwork | None:
        """See Backend.whole."""
        if model not in self.engines or self.zero_stage < DIVIDES_WEIGHTS:
            return self.processes.whole(model)
        with self.processes.together("whole weights on rank 0"):
            found = self.engines[model].whole(self._unsplit.get(model), model)
        return None if found is None else WholeNetwork(found, is_copy=True)

    def wait_for_all(self) -> None:
        """See Backend.wait_for_all."""
        self.processes.wait_for_all()

    def close(self) -> None:
        """See Backend.close."""
        for network in self.engines.values():
            network.close()
        self.engines.clear()
        self.processes.close()

    def _run(self, model: nn.Module, one_pass: Callable[[], Found]) -> Found:
        network = self.engines.get(model)
        if network is None:  # before there is an optimizer its weights are whole
            return one_pass()
        with self.processes.together("a forward pass"):
            found = network.run(one_pass)
        self._passed = network if torch.is_grad_enabled() else self._passed
        return found

    def _network_of(self, parameters: Sequence[nn.Parameter]) -> ZeroNetwork | None:
        wanted = {id(each) for each in parameters}
        return next((each for each in self.engines.values() if wanted & {id(flat) for flat in each.parameters}), None)

    def _config(self, network: nn.Module) -> dict[str, Any]:
        """DeepSpeed's configuration of one network. Raises ModelError for types of weights that it has none for."""
        types = {weight.dtype for weight in network.parameters() if weight.requires_grad}
        if not types <= set(TRAINED_TYPES) or len(types) > 1:
            raise ModelError(
                f"zero_stage = {self.zero_stage}: {', '.join(sorted(map(str, types)))} weights train, and DeepSpeed's "
                "engines take float32 or bfloat16, one of them in a network. Load the model in one of these (dtype), "
                "or use dp_shard = -1"
            )
        trained = max(1, sum(weight.numel() for weight in network.parameters() if weight.requires_grad))
        return {
            "train_micro_batch_size_per_gpu": 1,  # batches are ours; gradients are sums
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": 0.0,  # cut by `improve`, policy and critic together; DeepSpeed's own default is 1.0
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": types == {torch.bfloat16}},
            "data_types": {"grad_accum_dtype": "fp32"},
            # A bucket is held whole whatever lies in it: no larger than all gradients together.
            "zero_optimization": {"reduce_bucket_size": min(BUCKET, trained), **self.entries, "stage": self.zero_stage},
        }


def _refuse_shared(networks: Mapping[str, RoleNetwork]) -> None:
    known: dict[int, tuple[str, nn.Module]] = {}
    for name, network in networks.items():
        for weight in network.model.parameters():
            other, model = known.setdefault(id(weight), (name, network.model))
            if model is not network.model:
                raise ModelError(
                    f"zero_stage: {other} and {name} share weights, and DeepSpeed's engines have their network's all "
                    "to themselves. Use dp_shard = -1 (FSDP2), or networks that share none (critic_trunk = separate; a "
                    "reference by switching adapters off)"
                )
