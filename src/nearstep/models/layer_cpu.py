"""One decoder layer of Llama's kind on a CPU as one differentiable step: products, and loops between them.

    h = x + attention(norm(x)) · Wₒ        y = h + (silu(norm(h) · W_gate) · (norm(h) · W_up)) · W_down

Torch would take some fifty steps and keep what each of them leaves. Written out, neighbours are computed in one pass,
sums are made by the products themselves, and queries, keys and values come from one product.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearstep.models.attention_cpu import Angles, Rows, SegmentsOnCPU, attend_rows, differentiate_rows
from nearstep.models.layer_steps import (
    activate,
    differentiate_activation,
    differentiate_norm,
    normalise,
)
from nearstep.models.products import outer, times, times_across

States: TypeAlias = Float[Tensor, "tokens width"]


class Weights(NamedTuple):
    """The parameters of a layer, in the order in which they are used; a bias may be missing."""

    norm: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    mix: Tensor
    second_norm: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor


@dataclass(frozen=True)
class Shape:
    """What a layer is besides its weights."""

    epsilons: tuple[float, float]  # of its two norms
    head_width: int
    scaling: float
    window: int  # a token sees this many tokens, itself included


@dataclass(frozen=True)
class Pass:
    """One forward pass through a layer: its shape, who sees whom, and the tokens whose output is asked for (None: all;
    each once). Of the others the output is zero: they matter through their keys and values."""

    shape: Shape
    plan: SegmentsOnCPU
    angles: Angles
    asked: Int[Tensor, " asked"] | None


def run_layer(x: States, weights: Weights, run: Pass) -> States:
    """The output of a layer, float32."""
    output: Tensor = _Layer.apply(x, run, *weights)  # type: ignore[no-untyped-call]
    return output


class _Layer(torch.autograd.Function):
    """(states, weights) → states, and their gradients."""

    @staticmethod
    def forward(context: Any, x: Tensor, run: Pass, *parameters: Tensor | None) -> Tensor:
        w, shape = Weights(*parameters), run.shape  # type: ignore[arg-type]
        normed = normalise(x, w.norm, shape.epsilons[0])
        joined = times(normed.states, torch.cat([w.query, w.key, w.value]), _joined_bias(w))
        found, log_sums = attend_rows(_rows(joined, w, run), run.plan, shape.window, shape.scaling)
        mixed = _asked(found.view(len(x), -1), run)
        h = times(mixed, w.mix, _asked(x, run))
        second = normalise(h, w.second_norm, shape.epsilons[1])
        gate, up = times(second.states, w.gate), times(second.states, w.up)
        active = activate(gate, up)
        y = times(active, w.down, h)
        context.run = run
        context.save_for_backward(
            x, normed.states, normed.inverses, joined, found, log_sums, mixed, h, second.states,
            second.inverses, gate, up, active, *parameters,
        )  # fmt: skip
        return y if run.asked is None else x.new_zeros(x.shape).index_copy_(0, run.asked, y)

    @staticmethod
    @once_differentiable
    def backward(context: Any, of_y: Tensor) -> tuple[Tensor | None, ...]:
        run: Pass = context.run
        (x, normed, inverses, joined, found, log_sums, mixed, h, second, second_inverses,
         gate, up, active, *parameters) = context.saved_tensors  # fmt: skip
        w, shape = Weights(*parameters), run.shape
        of_y = _asked(of_y.contiguous(), run)
        of_gate, of_up = differentiate_activation(gate, up, times_across(of_y, w.down))
        of_second = times_across(of_up, w.up, times_across(of_gate, w.gate))
        of_h, of_second_norm = differentiate_norm(h, w.second_norm, second_inverses, of_second, of_y)
        of_found = _spread(times_across(of_h, w.mix), run, len(x)).view(found.shape)
        rows = _rows(joined, w, run)
        of_rows = differentiate_rows(rows, found, log_sums, of_found, run.plan, shape.window, shape.scaling)
        of_joined = of_rows.query.view(len(x), -1)
        of_normed = times_across(of_joined, torch.cat([w.query, w.key, w.value]))
        of_x, of_norm = differentiate_norm(x, w.norm, inverses, of_normed, _spread(of_h, run, len(x)))
        return (
            of_x, None, of_norm, *_of_joined_weights(of_joined, normed, w), _of_weight(of_h, mixed, w.mix),
            of_second_norm, _of_weight(of_gate, second, w.gate), _of_weight(of_up, second, w.up),
            _of_weight(of_y, active, w.down),
        )  # fmt: skip


def _rows(joined: Float[Tensor, "tokens wide"], weights: Weights, run: Pass) -> Rows:
    """Queries, keys and values, side by side."""
    width = run.shape.head_width
    return Rows.side_by_side(joined.view(len(joined), -1, width), len(weights.key) // width, run.angles)


def _joined_bias(weights: Weights) -> Tensor | None:
    biases = [bias for bias in weights[4:7] if bias is not None]
    return torch.cat(biases)[None] if biases else None


def _of_weight(
    of_output: Float[Tensor, "tokens wide"], states: States, weight: Float[Tensor, "wide width"]
) -> Float[Tensor, "wide width"] | None:
    return outer(of_output, states) if weight.requires_grad else None


def _of_joined_weights(
    of_joined: Float[Tensor, "tokens wide"], states: States, weights: Weights
) -> tuple[Tensor | None, ...]:
    """Gradients of the weights of queries, keys and values, then of their biases."""
    joined = weights[1:4]
    sizes = [len(weight) for weight in joined]
    learns = any(weight.requires_grad for weight in joined)
    of_weights = outer(of_joined, states).split(sizes) if learns else (None, None, None)
    of_biases = of_joined.sum(0).split(sizes) if weights.query_bias is not None else (None, None, None)
    return *of_weights, *of_biases


def _asked(states: States, run: Pass) -> Float[Tensor, "asked width"]:
    """The tokens whose output is asked for."""
    return states if run.asked is None else states.index_select(0, run.asked)


def _spread(states: Float[Tensor, "asked width"], run: Pass, tokens: int) -> States:
    """They at their places, zeros elsewhere."""
    if run.asked is None:
        return states
    return states.new_zeros(tokens, states.shape[1]).index_copy_(0, run.asked, states)
