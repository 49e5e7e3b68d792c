"""Networks whose weights lie in pieces over processes, and are gathered around what is computed with them (FSDP2)."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers.modeling_layers import GradientCheckpointingLayer

from nearstep.common.errors import ModelError
from nearstep.scale.shards import whole_tensor
from nearstep.scale.tensor_parallel import LayerDivision

Found = TypeVar("Found")


class _Root(nn.Module):
    """Around networks that share weights: a pass of any of them is a call of this, which torch hooks into."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, one_pass: Callable[[], list[Tensor]]) -> list[Tensor]:
        """What the pass gives; the tensors tell torch when their backward pass begins."""
        return one_pass()


@dataclass
class ShardedNetworks:
    """One network in pieces, or several that share weights.

    Weights are whole while a layer needs them, in a pass forward or backward, or within `gathered`. Torch's hooks are
    on layers and on the root alone, so a head or an embedding is called as ever.
    """

    root: nn.Module
    unsplit: dict[nn.Module, nn.Module]  # each network as it was, its weights on the meta device; on rank 0 alone
    depth: int = 0  # of `gathered`

    def run(self, one_pass: Callable[[], Found]) -> Found:
        """Run a pass: every layer's weights are gathered before it and let go after it, and again on the way back.

        All processes run as many of them, and as many backward passes.
        """
        found: list[Found] = []

        def inside() -> list[Tensor]:
            found.append(one_pass())
            return tensors_in(found[0])

        self.root(inside)
        return found[0]

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights whole on every process, for any number of passes without a gradient; all processes come here."""
        self.depth += 1
        if self.depth == 1:
            for module in self._modules:
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                for module in self._modules:
                    module.set_reshard_after_forward(True, recurse=False)
                    module.reshard()

    def whole(self, network: nn.Module) -> nn.Module | None:
        """A copy of one of the networks on the CPU of rank 0, in the type that it had; None elsewhere.

        All processes call this. One tensor at a time is gathered.
        """
        memo: dict[int, object] = {}
        unsplit = self.unsplit.get(network)
        originals = {} if unsplit is None else dict(unsplit.named_parameters())
        for name, weight in network.named_parameters():
            tensor = whole_tensor(weight)
            if unsplit is not None:
                like = originals[name]
                cpu = tensor.detach().to("cpu", like.dtype, copy=True)
                memo[id(like)] = nn.Parameter(cpu, requires_grad=like.requires_grad)
        return None if unsplit is None else copy.deepcopy(unsplit, memo)

    @property
    def _modules(self) -> list[FSDPModule]:
        return [module for module in self.root.modules() if isinstance(module, FSDPModule)]


def shard_networks(
    networks: Sequence[nn.Module],
    mesh: DeviceMesh,
    device: torch.device,
    *,
    layers: bool,
    masters: bool,
    main: bool,
    division: LayerDivision | None = None,
) -> ShardedNetworks:
    """Deal out the weights of networks that share some, as rank 0 has them, over the last dimension of `mesh`; what a
    `division` gives to other processes of its own mesh, before that.

    With `layers` each layer is gathered by itself, else all weights at once. With `masters` weights narrower than
    float32 that train become float32 pieces, which are gathered in the narrow type: the pieces are the masters. At
    no time is more whole on the device than one layer, or what lies outside of layers.
    """
    unsplit = {network: on_meta(network) for network in networks} if main else {}
    root = _Root(networks)
    units: list[nn.Module] = [module for module in root.modules() if isinstance(module, GradientCheckpointingLayer)]
    units = units if layers and not _share_weights(units) else []
    policy = _policy(root, masters=masters)
    for unit in (*units, root):
        _from_rank_0(unit, device, widen=policy.param_dtype is not None)
        if division is not None:
            division.apply(unit)
        sharded: FSDPModule = fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
        # The loss is divided by counts over all processes, so gradients are summed.
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    networks_sharded = ShardedNetworks(root, unsplit)
    with torch.no_grad():
        root(list)  # torch calls the module that runs first the root
    return networks_sharded


def _policy(root: nn.Module, *, masters: bool) -> MixedPrecisionPolicy:
    """In which type weights are gathered and gradients summed. Raises ModelError for weights of several types that
    cannot be gathered together."""
    trained = {weight.dtype for weight in root.parameters() if weight.requires_grad}
    if len(trained) > 1:
        raise ModelError(
            f"dp_shard: weights of {', '.join(sorted(map(str, trained)))} train together, and pieces of one type are "
            "needed. Load the model in one type (dtype = float32, with bf16 = true to compute in bfloat16), or name "
            "the role in whole_roles"
        )
    everything = {weight.dtype for weight in root.parameters()}
    if masters and trained == {torch.bfloat16} and everything == trained:
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    reduce = torch.float32 if trained == {torch.bfloat16} else None
    return MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False)


def _from_rank_0(unit: nn.Module, device: torch.device, *, widen: bool) -> None:
    """Have what of a unit is not dealt out yet on the device, the same everywhere; `widen` what trains to float32."""
    inner = {id(weight) for each in unit.modules() if each is not unit and isinstance(each, FSDPModule)
             for weight in each.parameters()}  # fmt: skip
    for tensor in (*unit.parameters(), *unit.buffers()):
        if id(tensor) in inner:
            continue
        tensor.data = tensor.data.to(device)
        dist.broadcast(tensor.data, src=0)
        if widen and isinstance(tensor, nn.Parameter):
            tensor.data = tensor.data.float()


def on_meta(network: nn.Module) -> nn.Module:
    """A copy without weights."""
    memo: dict[int, object] = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
        for weight in network.parameters()
    }
    return copy.deepcopy(network, memo)


def _share_weights(units: Sequence[nn.Module]) -> bool:
    """Whether a weight lies in two modules that are not one inside the other: they can only be gathered together."""
    known = Counter(id(weight) for unit in units for weight in unit.parameters())
    return any(count > 1 for count in known.values())


def tensors_in(found: object) -> list[Tensor]:
    """All tensors that carry a gradient in tuples and dataclasses; of a view what it is one of, which hears of the
    gradient whatever becomes of the view."""
    if isinstance(found, Tensor):
        base = found if found._base is None else found._base
        return [base] if base.requires_grad else []
    if is_dataclass(found):
        return [tensor for field in fields(found) for tensor in tensors_in(vars(found)[field.name])]
    if isinstance(found, tuple):
        return [tensor for each in found for tensor in tensors_in(each)]
    return []
