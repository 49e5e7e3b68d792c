"""Networks under DeepSpeed: one engine for each that trains (ZeRO-2, ZeRO-3), pieces for those that do not (ZeRO-3).

The engine keeps float32 weights and moments as one flat tensor over all processes (Rajbhandari et al. 2020, ZeRO,
arXiv 1910.02054). Read of its optimizers beside documented calls: flat tensors, places in them, gradients for a step.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from nearstep.common.errors import CheckpointError
from nearstep.scale.zero_pieces import Piece, Share, copy_part, whole_parameters

Found = TypeVar("Found")
DIVIDES_WEIGHTS = 3  # the stage that does; stage 2 divides gradients and moments


class PassRoot(nn.Module):
    """Around a network: a pass of it is a call of this, which DeepSpeed hooks into."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, one_pass: Callable[[], Tensor]) -> Tensor:
        """What the pass gives; it tells DeepSpeed when its backward pass begins."""
        return one_pass()


@dataclass
class ZeroNetwork:
    """A network with an engine: its passes, its steps, and its weights as checkpoints have them."""

    engine: Any  # deepspeed.DeepSpeedEngine, which has no types
    weights: Sequence[nn.Parameter]  # that train, in the order of checkpoints
    stage: int
    depth: int = 0  # of `gathered`
    layers: bool = True  # whether each layer is gathered by itself (ZeRO-3); else all weights around a pass
    _backwards: int = 0  # since gradients were freed
    _gather: Any = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """See Stepper.parameters: one flat tensor, or several where a network is very large."""
        optimizer = self.engine.optimizer
        divided = self.stage == DIVIDES_WEIGHTS
        return list(optimizer.fp32_partitioned_groups_flat if divided else optimizer.single_partition_of_fp32_groups)

    def run(self, one_pass: Callable[[], Found]) -> Found:
        """Run a pass, with a gradient or without. All processes run as many, unless weights are gathered."""
        if not torch.is_grad_enabled():
            with self.gathered():
                return one_pass()
        found: list[Found] = []

        def inside() -> Tensor:
            found.append(one_pass())
            # One tensor: DeepSpeed counts the outputs that a backward pass comes through, which must be as many on
            # each process, whatever a loss takes of them.
            return torch.cat([tensor.flatten() for tensor in _learning(found[0])])

        outputs, tensors = self.engine(inside), _learning(found[0])
        parts = outputs.split([tensor.numel() for tensor in tensors])
        theirs = [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]
        return cast("Found", _with_tensors(found, iter(theirs))[0])

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss, summed over processes: DeepSpeed takes means."""
        self.engine.backward(loss * dist.get_world_size())
        self._backwards += 1

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """All weights whole, for any number of passes without a gradient. All processes come here."""
        self.depth += 1
        if self.depth == 1 and self.stage == DIVIDES_WEIGHTS:
            self._gather_all()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0 and self.stage == DIVIDES_WEIGHTS:
                self._let_go()

    def add_up_gradients(self) -> None:
        """Lay the gradients, which the backward passes have summed, on this process's share."""
        optimizer, flats = self.engine.optimizer, self.parameters
        if not self._backwards:
            return
        optimizer.finalize_gradient_accumulation_boundary()
        for number, flat in enumerate(flats):
            parts = [part.detach().flatten().to(flat.dtype) for part in optimizer.averaged_gradients[number]]
            flat.grad = torch.cat(parts)
            optimizer.averaged_gradients[number] = [flat.grad]  # so that a step takes what was clipped

    def step(self) -> None:
        """See Stepper.step. Without a backward pass since the last one nothing moves."""
        if self._backwards:
            self.engine.optimizer.step()
        self.free_gradients()

    def free_gradients(self) -> None:
        """See Stepper.free_gradients."""
        optimizer = self.engine.optimizer
        optimizer.zero_grad(set_to_none=True)
        for flat in self.parameters:
            flat.grad = None
        for number in optimizer.averaged_gradients:
            optimizer.averaged_gradients[number] = None
        if self.stage == DIVIDES_WEIGHTS:
            optimizer.grad_partitions_flat_buffer.zero_()  # else a weight without a gradient would keep its last one
        else:
            for number in optimizer.all_grad_tensors:
                optimizer.all_grad_tensors[number] = None
        self._backwards = 0

    def shape(self, weight: nn.Parameter) -> torch.Size:
        """See Stepper.shape."""
        return torch.Size(weight.ds_shape) if self.stage == DIVIDES_WEIGHTS else weight.shape  # type: ignore[attr-defined]

    def weight(self, weight: nn.Parameter) -> Piece:
        """See Stepper.weight."""
        return self._piece(weight, self.parameters)

    def moments(self, weight: nn.Parameter) -> dict[str, Piece | Tensor]:
        """See Stepper.moments; numbers of a whole flat tensor, as Adam's step, are those of each of its weights."""
        flats, share = self.parameters, self._share(weight)
        state = [self.engine.basic_optimizer.state.get(flat, {}) for flat in flats]
        of_weight = state[self._flat_of(weight)]
        flat = flats[self._flat_of(weight)]
        return {
            name: self._piece(weight, [each.get(name) for each in state], share)
            if tensor.shape == flat.shape
            else tensor
            for name, tensor in of_weight.items()
        }

    def restore(self, weights: Sequence[Tensor], moments: Sequence[Mapping[str, Tensor]]) -> None:
        """See Stepper.restore."""
        flats, state = self.parameters, self.engine.basic_optimizer.state
        for weight, whole, kept in zip(self.weights, weights, moments, strict=True):
            self._put(whole, weight)
            flat, share = flats[self._flat_of(weight)], self._share(weight)
            if share is not None:
                copy_part(whole, flat, share)
            for name, tensor in kept.items():
                if tensor.numel() == 1 and self.shape(weight) != tensor.shape:
                    self._same_number(name, tensor, state[flat])
                    continue
                of_flat = state[flat].setdefault(name, torch.zeros_like(flat))
                if share is not None:
                    copy_part(tensor, of_flat, share)

    def _same_number(self, name: str, tensor: Tensor, state: dict[str, Any]) -> None:
        """Weights of one flat tensor step together. Raises CheckpointError where they did not."""
        known = state.setdefault(name, tensor.clone())
        if not torch.equal(known.cpu(), tensor.cpu()):
            raise CheckpointError(
                f"the checkpoint has weights of one network with {float(known):g} and {float(tensor):g} as {name}: "
                "some were without a gradient for a while. Under DeepSpeed all weights of a network step together: go "
                "on without zero_stage (dp_shard = -1)"
            )

    def whole(self, like: nn.Module | None, network: nn.Module) -> nn.Module | None:
        """A copy of the network on the CPU of rank 0, of its structure `like`; None elsewhere. All processes call it,
        and gather one weight at a time."""
        memo: dict[int, object] = {}
        originals = {} if like is None else dict(like.named_parameters())
        for name, weight in network.named_parameters():
            with whole_parameters([weight]):
                if like is not None:
                    original = originals[name]
                    cpu = weight.detach().to("cpu", original.dtype, copy=True)
                    memo[id(original)] = nn.Parameter(cpu, requires_grad=original.requires_grad)
        return None if like is None else copy.deepcopy(like, memo)

    def close(self) -> None:
        """Let go of the engine and of what it holds."""
        self.engine.destroy()

    def _flat_of(self, weight: nn.Parameter) -> int:
        if self.stage == DIVIDES_WEIGHTS:
            optimizer = self.engine.optimizer
            return int(optimizer.grad_position[optimizer.get_param_id(weight)][0])
        return 0  # one group of weights, one flat tensor

    def _share(self, weight: nn.Parameter) -> Share | None:
        """Where the part of a weight lies; None where this process has none of it."""
        optimizer = self.engine.optimizer
        if self.stage == DIVIDES_WEIGHTS:
            flat, start, numel = optimizer.grad_position[optimizer.get_param_id(weight)]
            first = numel * dist.get_rank()
            there = min(numel, int(weight.ds_numel) - first)  # type: ignore[attr-defined]
            return Share(int(flat), int(start), first, there) if there > 0 else None
        found = weight._hp_mapping  # type: ignore[attr-defined]
        if found is None:
            return None
        in_flat, in_weight = found.hp_fragment_address, found.lp_fragment_address
        return Share(0, int(in_flat.start), int(in_weight.start), int(in_flat.numel))

    def _piece(self, weight: nn.Parameter, flats: Sequence[Tensor | None], share: Share | None = None) -> Piece:
        share = share or self._share(weight)
        tensor = flats[self._flat_of(weight)]
        assert tensor is not None
        if share is None:
            return Piece(tensor.detach()[:0], 0, self.shape(weight))
        return Piece(tensor.detach()[share.start : share.start + share.numel], share.of_weight, self.shape(weight))

    def _put(self, whole: Tensor, weight: nn.Parameter) -> None:
        """Have the network compute with a weight, whole on every process."""
        with whole_parameters([weight], changed=True), torch.no_grad():
            weight.copy_(whole)

    def leave_to_root(self) -> None:
        """Have what lies outside of layers gathered around the whole pass (ZeRO-3).

        A head is called as often as there are chunks of actions, which are not equally many on all processes, and each
        call that gathers must be met by one of every other.
        """
        if self.stage != DIVIDES_WEIGHTS:
            return
        import deepspeed

        root, offload = self.engine.module, self.engine.optimizer.parameter_offload
        units = [each for each in root.modules() if self.layers and isinstance(each, GradientCheckpointingLayer)]
        inside = {id(module) for unit in units for module in unit.modules()}
        outside = [module for module in root.network.modules() if id(module) not in inside]
        for weight in (weight for module in outside for weight in module.parameters(recurse=False)):
            deepspeed.zero.register_external_parameter(root, weight)
        hooks = {id(known) for module in outside for known in (module._forward_hooks, module._forward_pre_hooks)}
        for handles in (offload.forward_hooks, offload.backward_hooks):
            for handle in [each for each in handles if id(each.hooks_dict_ref()) in hooks]:
                handle.remove()
                handles.remove(handle)

    def _gather_all(self) -> None:
        """As DeepSpeed's unwrap_model_for_generation does: whole weights, and no hook that would let them go."""
        offload = self.engine.optimizer.parameter_offload
        self._gather = whole_parameters(list(self.engine.module.parameters()))
        self._gather.__enter__()
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []

    def _let_go(self) -> None:
        offload = self.engine.optimizer.parameter_offload
        offload._register_deepspeed_module(offload.module)
        self.leave_to_root()
        gather, self._gather = self._gather, None
        gather.__exit__(None, None, None)


def with_engine(
    network: nn.Module,
    weights: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, object],
    stage: int,
    *,
    layers: bool,
) -> ZeroNetwork:
    """Put a network under an engine, which takes over the optimizer. All processes call this."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=PassRoot(network), optimizer=optimizer, config=dict(config))
    found = ZeroNetwork(engine, list(weights), stage, layers=layers)
    found.leave_to_root()
    return found


def _learning(found: object) -> list[Tensor]:
    """All tensors that carry a gradient in tuples and dataclasses."""
    if isinstance(found, Tensor):
        return [found] if found.requires_grad else []
    if is_dataclass(found):
        return [tensor for each in fields(found) for tensor in _learning(vars(found)[each.name])]
    if isinstance(found, tuple | list):
        return [tensor for each in found for tensor in _learning(each)]
    return []


def _with_tensors(found: Any, tensors: Iterator[Tensor]) -> Any:
    """The same with other tensors in the places of those that carry a gradient, in the same order: DeepSpeed's, which
    tell it when their backward pass begins."""
    if isinstance(found, Tensor):
        return next(tensors) if found.requires_grad else found
    if is_dataclass(found) and not isinstance(found, type):
        parts = {each.name: _with_tensors(vars(found)[each.name], tensors) for each in fields(found)}
        return replace(found, **parts)
    if isinstance(found, tuple | list):
        return type(found)(_with_tensors(each, tensors) for each in found)
    return found
