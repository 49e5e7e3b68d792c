"""What a decoder layer does between its products, with tensors: the loops of layer_kernels.py over torch's threads.

All tensors are float32 on a CPU and contiguous. Nothing here is differentiated by torch.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from torch import Tensor

from nearstep.models.cpu_threads import arrays, even_shares, in_threads

States: TypeAlias = Float[Tensor, "tokens width"]


@dataclass(frozen=True)
class Normalised:
    """States after a norm, and 1 / √(mean square + ε) of each before it."""

    states: States
    inverses: Float[Tensor, " tokens"]


def normalise(states: States, weight: Float[Tensor, " width"], epsilon: float) -> Normalised:
    """A root-mean-square norm (Zhang & Sennrich 2019)."""
    from nearstep.models import layer_kernels

    found = Normalised(states.new_empty(states.shape), states.new_empty(len(states)))
    x, w, y, r = arrays(states, weight, found.states, found.inverses)

    def run(first: int, last: int) -> None:
        lines = slice(first, last)
        layer_kernels.normalise(x[lines], w, np.float32(epsilon), y[lines], r[lines])

    in_threads(run, even_shares(*states.shape))
    return found


def differentiate_norm(
    states: States,
    weight: Float[Tensor, " width"],
    inverses: Float[Tensor, " tokens"],
    gradient: States,
    beside: States,
) -> tuple[States, Float[Tensor, " width"]]:
    """The gradient of states that a norm and, `beside` it, a sum behind it read; and of the norm's weight."""
    from nearstep.models import layer_kernels

    shares = even_shares(*states.shape)
    of_states, of_weight = states.new_empty(states.shape), weight.new_zeros(len(shares), len(weight))
    x, w, r, g, b, of_x, of_w = arrays(states, weight, inverses, gradient, beside, of_states, of_weight)

    def run(first: int, last: int, number: int) -> None:
        lines = slice(first, last)
        layer_kernels.differentiate_norm(x[lines], w, r[lines], g[lines], b[lines], of_x[lines], of_w[number])

    in_threads(run, [(*share, number) for number, share in enumerate(shares)])
    return of_states, of_weight.sum(0)


def activate(gate: States, up: States) -> States:
    """silu(gate) · up (Shazeer 2020)."""
    from nearstep.models import layer_kernels

    out = gate.new_empty(gate.shape)
    g, u, o = arrays(gate.view(-1), up.view(-1), out.view(-1))

    def run(first: int, last: int) -> None:
        layer_kernels.activate(g[first:last], u[first:last], o[first:last])

    in_threads(run, even_shares(len(g), 1))
    return out


def differentiate_activation(gate: States, up: States, gradient: States) -> tuple[States, States]:
    """The gradients of gate and up."""
    from nearstep.models import layer_kernels

    of_gate, of_up = gate.new_empty(gate.shape), up.new_empty(up.shape)
    g, u, d, of_g, of_u = arrays(*(tensor.view(-1) for tensor in (gate, up, gradient, of_gate, of_up)))

    def run(first: int, last: int) -> None:
        part = slice(first, last)
        layer_kernels.differentiate_activation(g[part], u[part], d[part], of_g[part], of_u[part])

    in_threads(run, even_shares(len(g), 1))
    return of_gate, of_up
