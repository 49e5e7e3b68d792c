"""What the last layer need not compute: its feed-forward part for tokens whose final state nobody reads.

That part works token by token, and of most tokens, those of prompts, the final state is never looked at: they matter
through the keys and values that they left in the layers. What it gives for them is replaced by zeros. The loops of a
CPU leave out what they attend to, too; a layer that runs there as one step (layer_cpu.py) looks up itself what is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from nearstep.models.attention.interface import AttentionPlan, LayerInput
from nearstep.models.attention_cpu import SegmentsOnCPU
from nearstep.models.forward.probing import relative_gap, rounding

NAMES = ("mlp", "feed_forward", "ffn")  # what families call it in a layer


@dataclass(frozen=True)
class LastFeedForward:
    """The feed-forward module of a trunk's last layer."""

    module: nn.Module
    layer: int

    @staticmethod
    def of(trunk: PreTrainedModel) -> "LastFeedForward | None":
        """The one under a name that families give it; None where there is none."""
        count = trunk.config.get_text_config().num_hidden_layers
        layers = [module for module in trunk.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
        children = dict(layers[0][-1].named_children()) if layers else {}
        return next((LastFeedForward(children[name], count - 1) for name in NAMES if name in children), None)

    @contextmanager
    def only_for(self, read: Int[Tensor, " read"], tokens: int, plan: AttentionPlan) -> Iterator[AttentionPlan]:
        """The plan for a forward pass of `tokens` tokens in which only the final states at `read` will be right.

        Nothing of it stays on the module. Where somebody else's hooks wait for its calls, it is left alone.
        """
        if self.module._forward_hooks or self.module._forward_pre_hooks:
            yield plan
            return
        reading = ReadingPlan(plan, self, _Read.of(read, tokens))
        try:
            yield reading
        finally:
            reading.withdraw()

    @torch.no_grad()
    def fits(self, states_of: Callable[[AttentionPlan], Tensor], plan: AttentionPlan) -> bool:
        """Whether the module may be treated so: one tensor in, one out, token by token, after the layer's attention.

        `states_of` runs the trunk on some tokens and gives their final states.
        """
        calls: list[tuple[tuple[Any, ...], dict[str, Any], Any]] = []
        handle = self.module.register_forward_hook(
            lambda module, args, kwargs, output: calls.append((args, kwargs, output)), with_kwargs=True
        )
        whole = states_of(plan)
        handle.remove()
        if len(calls) != 1:
            return False
        (args, kwargs, output), tokens = calls[0], len(whole)
        if len(args) != 1 or kwargs or not all(isinstance(states, Tensor) for states in (*args, output)):
            return False
        if any(states.shape[:-1] != (1, tokens) for states in (*args, output)):
            return False
        read = torch.tensor([tokens - 1, tokens // 2, tokens // 2], device=whole.device)
        with self.only_for(read, tokens, plan) as reading:
            part = states_of(reading)[read]
        return relative_gap(part, whole[read]) <= rounding(whole.dtype)


@dataclass(frozen=True)
class _Read:
    """Tokens whose final states are read. One may stand there twice (samples share their prompt's last token): all but
    its first place have the share 0, so that its gradient counts once."""

    places: Int[Tensor, " read"]
    shares: Float[Tensor, "read 1"]
    tokens: int

    @staticmethod
    def of(places: Int[Tensor, " read"], tokens: int) -> "_Read":
        """No number is read back from the device for it."""
        order = torch.arange(len(places), device=places.device)
        first = order.new_full((tokens,), len(places)).scatter_reduce(0, places, order, "amin")
        return _Read(places, (first[places] == order)[:, None].float(), tokens)

    def take(self, states: Float[Tensor, "1 tokens width"]) -> Float[Tensor, "1 read width"]:
        """The states that are read."""
        return states.index_select(1, self.places)

    def put_back(self, states: Float[Tensor, "1 read width"]) -> Float[Tensor, "1 tokens width"]:
        """They at their places, zeros elsewhere."""
        whole = states.new_zeros(1, self.tokens, states.shape[2])
        return whole.index_add(1, self.places, states * self.shares.to(states.dtype))


@dataclass(frozen=True)
class ReadingPlan:
    """A plan that, once the last layer has attended, has its feed-forward module take only what is read.

    Attention comes right before it, also when a checkpointed layer is computed again in the backward pass.
    """

    plan: AttentionPlan
    last: LastFeedForward
    read: _Read
    hooks: list[RemovableHandle] = field(default_factory=list)

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """See AttentionPlan.attend."""
        if layer.layer != self.last.layer:
            return self.plan.attend(layer)
        plan = self.plan.asking_only(self.read.places) if isinstance(self.plan, SegmentsOnCPU) else self.plan
        output = plan.attend(layer)
        self.hooks.append(self.last.module.register_forward_pre_hook(self._take))
        self.hooks.append(self.last.module.register_forward_hook(self._put_back))
        return output

    def withdraw(self) -> None:
        """Take the hooks off the module."""
        while self.hooks:
            self.hooks.pop().remove()

    def _take(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self.read.take(inputs[0]),)

    def _put_back(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.withdraw()
        return self.read.put_back(output)
