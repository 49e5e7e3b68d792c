"""How the layers of networks are divided over processes that compute them together, by the plan of their family."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from nearstep.scale.layer_plan import EXPERTS, SUMMED, LayerPlan
from nearstep.scale.summed_gradients import summed_gradient


@dataclass
class LayerDivision:
    """Divides modules by their plan. Weights that several modules share stay one weight."""

    plan: LayerPlan
    mesh: DeviceMesh  # of the processes that compute together
    _done: set[nn.Module] = field(default_factory=set)
    _shared: dict[int, tuple[nn.Parameter, nn.Parameter]] = field(
        default_factory=dict
    )  # whole weight → it and its part

    def apply(self, unit: nn.Module) -> None:
        """Leave of each divided weight in a module, and in those inside, this process's part, and have their forward
        passes speak with the other processes. What has been done is left as it is."""
        for module in unit.modules():
            if module in self._done:
                continue
            self._done.add(module)
            for name, style in self.plan.weights.get(module, {}).items():
                self._divide(module, name, style)
            if module in self.plan.hooks:
                self._hook(module, self.plan.hooks[module])

    def _divide(self, module: nn.Module, name: str, style: str) -> None:
        whole = module._parameters[name]
        if whole is None:
            return
        known = self._shared.get(id(whole))
        if known is None:
            _styles()[style].shard_param(module, name, self.mesh)
            part = module._parameters[name]
            assert part is not None, "a style that shards leaves a weight"
            # `whole` is kept where another module will ask for it: its id must not be another's by then.
            if id(whole) in self.plan.shared:
                self._shared[id(whole)] = (whole, part)
        else:
            module._parameters[name] = known[1]

    def _hook(self, module: nn.Module, style: str) -> None:
        if style == SUMMED:
            module.forward = _with_summed_gradients(module, self.mesh)
        elif style == EXPERTS:
            _styles()[style].install_forward(module, self.mesh, tp_mesh=self.mesh)
        elif isinstance(module, nn.Embedding) and module.padding_idx is not None:
            padding, module.padding_idx = module.padding_idx, None
            _styles()[style].install_forward(module, self.mesh)
            module.forward = _without_gradient_of(padding, module.forward)  # type: ignore[method-assign, assignment]
        else:
            _styles()[style].install_forward(module, self.mesh)


def _styles() -> Mapping[str, Any]:
    """transformers' styles by name, those of experts too. Imported here: releases before 5.23 have them elsewhere."""
    from transformers.distributed import expert_parallel, tensor_parallel

    assert expert_parallel, "its import adds its styles"
    styles: Mapping[str, Any] = tensor_parallel.ALL_PARALLEL_STYLES
    return styles


def _with_summed_gradients(module: nn.Module, mesh: DeviceMesh) -> Callable[..., Any]:
    """The forward pass of a norm that every process has whole and each uses on its own heads.

    transformers sums what has gathered in `grad` after each backward pass, which counts all but the last micro-batch
    of a step several times; here each pass's own gradient is summed.
    """
    forward, group = module.forward, mesh.get_group()

    def summed(*args: Any, **keywords: Any) -> Any:
        with _in_the_place_of(module, {name: summed_gradient(weight, group) for name, weight in _own(module)}):
            return forward(*args, **keywords)

    return summed


def _own(module: nn.Module) -> Sequence[tuple[str, nn.Parameter]]:
    return list(module.named_parameters(recurse=False))


@contextmanager
def _in_the_place_of(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    own = dict(module._parameters)
    module._parameters.update(weights)  # type: ignore[arg-type]
    try:
        yield
    finally:
        module._parameters.update(own)


def _without_gradient_of(padding: int, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An embedding's padding id has no gradient. Torch would look for the id among the rows of a part, where it is
    another token's."""

    def embedded(ids: Tensor) -> Tensor:
        found = forward(ids)
        return torch.where((ids == padding)[..., None], found.detach(), found)

    return embedded
