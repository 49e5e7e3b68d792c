"""Which decoder layers of a model run as one step on a CPU: those of Llama's kind that turn out to compute the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nearstep.models.attention.choice import plan_of
from nearstep.models.attention.interface import AttentionPlan, LayerInput, Segment
from nearstep.models.attention_cpu import EVERYTHING, Angles, SegmentsOnCPU, loops_fit
from nearstep.models.forward.forward import hidden_states
from nearstep.models.forward.probing import probe_rows, relative_gap
from nearstep.models.last_layer import ReadingPlan
from nearstep.models.layer_cpu import Pass, Shape, Weights, run_layer

NORMS = "input_layernorm", "post_attention_layernorm"
LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
          "mlp.up_proj", "mlp.down_proj")  # fmt: skip
PARTS = {"", *NORMS, *LINEAR, "self_attn", "mlp", "mlp.act_fn"}
ROUNDING = 1e-4  # relative; of one layer


@dataclass(frozen=True)
class LayerInLoops:
    """What a layer's module has for its forward pass: one step on a CPU, or its class's where that does not fit.

    It stands on the module and not around a pass, since layers may be computed again in the backward pass.
    """

    module: nn.Module
    number: int
    shape: Shape
    biased: bool

    def __call__(self, hidden_states: Tensor, *more: Any, **named: Any) -> Tensor:
        """The output of the layer [1, tokens, width]; `named` is what the family's trunk gives its layers."""
        plan = named.get("attention_plan")
        reading = plan if isinstance(plan, ReadingPlan) else None
        inner = plan if reading is None else reading.plan
        if more or not isinstance(inner, SegmentsOnCPU) or not self._fits(hidden_states, named):
            output: Tensor = type(self.module).forward(self.module, hidden_states, *more, **named)
            return output
        asked = None if reading is None or reading.last.layer != self.number else reading.read.places.unique()
        seen = inner if asked is None else inner.asking_only(asked)
        angles = Angles(*(one[0].contiguous() for one in named["position_embeddings"]))
        run = Pass(self.shape, seen, angles, asked)
        return run_layer(hidden_states[0].contiguous(), weights_of(self.module, biased=self.biased), run)[None]

    def _fits(self, states: Tensor, named: Mapping[str, Any]) -> bool:
        """Whether packed states come in float32, without a cache, and nobody waits for a call of a module inside or has
        put something else in its place."""
        packed = states.is_cpu and states.dtype == torch.float32 and len(states) == 1
        alone = named.get("past_key_values") is None and named.get("position_embeddings") is not None
        return packed and alone and not torch.is_autocast_enabled("cpu") and not any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
            or "forward" in vars(part)
            for part in self.module.modules()
            if part is not self.module
        )  # fmt: skip


def layers_of_one_step(model: nn.Module) -> int:
    """How many layers of a model run as one step where that fits."""
    return sum(isinstance(vars(module).get("forward"), LayerInLoops) for module in model.modules())


def weights_of(layer: nn.Module, *, biased: bool) -> Weights:
    """The parameters of a layer of Llama's kind; `biased`: its queries, keys and values have biases."""
    norm, second = (layer.get_parameter(f"{name}.weight") for name in NORMS)
    query, key, value, mix, gate, up, down = (layer.get_parameter(f"{name}.weight") for name in LINEAR)
    if not biased:
        return Weights(norm, query, key, value, None, None, None, mix, second, gate, up, down)
    of_query, of_key, of_value = (layer.get_parameter(f"{name}.bias") for name in LINEAR[:3])
    return Weights(norm, query, key, value, of_query, of_key, of_value, mix, second, gate, up, down)


@dataclass(frozen=True)
class _Recording:
    """A plan that writes down what every layer says about its attention, in turn."""

    plan: AttentionPlan
    said: list[LayerInput] = field(default_factory=list)

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """See AttentionPlan.attend."""
        self.said.append(layer)
        return self.plan.attend(layer)


@dataclass(frozen=True)
class _Call:
    """What a layer was given, what it said about its attention, and what it gave."""

    module: nn.Module
    states: Tensor
    named: Mapping[str, Any]
    said: LayerInput
    output: Any


@torch.no_grad()
def layers_in_loops(model: PreTrainedModel) -> None:
    """Let a model's layers run as one step on a CPU: those that give the same for two short rows, packed."""
    rows = probe_rows(model)
    plan = plan_of(tuple(Segment(len(row)) for row in rows), rows[0].device)
    if not isinstance(plan, SegmentsOnCPU):
        return
    recording, calls = _Recording(plan), list[_Call]()

    def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        calls.append(_Call(module, given[0], named, recording.said[-1], output))

    layers = [module for module in model.base_model.modules() if {name for name, _ in module.named_modules()} == PARTS]
    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    hidden_states(model.base_model, torch.cat(rows), positions[None], recording)
    for handle in handles:
        handle.remove()
    for call in calls:
        ours = _fitting(call, plan)
        if ours is not None:
            call.module.forward = ours


def _fitting(call: _Call, plan: SegmentsOnCPU) -> LayerInLoops | None:
    """The layer as one step, if it gives what its class gave."""
    module, said = call.module, call.said
    parts = dict(module.named_modules())
    linear = [parts[name] for name in LINEAR]
    weights = list(module.parameters())
    numbers = [[value for value in vars(parts[name]).values() if isinstance(value, float)] for name in NORMS]
    if any(type(one) is not nn.Linear for one in linear) or any(one.dtype != torch.float32 for one in weights):
        return None
    with_bias = [one.bias is not None for one in linear]
    if with_bias[:3] not in ([True] * 3, [False] * 3) or any(with_bias[3:]) or [len(one) for one in numbers] != [1, 1]:
        return None
    width = said.query.shape[3]
    if not loops_fit(torch.float32, width=width, value_width=said.value.shape[3], softcap=said.softcap):
        return None
    scaling = width**-0.5 if said.scaling is None else said.scaling
    shape = Shape((numbers[0][0], numbers[1][0]), width, scaling, said.window or EVERYTHING)
    ours = LayerInLoops(module, said.layer, shape, biased=with_bias[0])
    output = ours(call.states, **{**call.named, "attention_plan": plan})
    same = isinstance(call.output, Tensor) and relative_gap(output, call.output) <= ROUNDING
    return ours if same else None
