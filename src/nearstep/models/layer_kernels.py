"""What a decoder layer does between its products, on a CPU and in one pass each: float32, compiled by numba.

Root-mean-square norms and silu(gate) · up, each with its gradient. No two arguments may share memory.
"""

import numpy as np

from nearstep.models.cpu_loops import Real, compiled, exponentials, f4, fill, inner_product, scratch, sums
from nearstep.models.cpu_tiles import Floats

LINES = 64  # whose gradients of a weight are summed on their own first, so that no long sum loses what is small
PIECE = 512  # numbers that are worked on together, in the nearest cache
LARGEST = f4(88)  # its exponential is still finite


@compiled()
def normalise(states: Floats, weight: Floats, epsilon: Real, out: Floats, inverses: Floats) -> None:
    """out = x · weight / √(mean x² + ε) of every line x of `states`; `inverses` gets the 1 / √."""
    for i in range(states.shape[0]):
        line, into = states[i], out[i]
        inverse = f4(1) / np.sqrt(inner_product(line, line) / f4(len(line)) + epsilon)
        inverses[i] = inverse
        for j in range(len(line)):
            into[j] = line[j] * inverse * weight[j]


@sums
def differentiate_norm(
    states: Floats, weight: Floats, inverses: Floats, gradient: Floats, beside: Floats, of_states: Floats,
    of_weight: Floats,
) -> None:  # fmt: skip
    """The gradient of states that a norm and a sum behind it read: the norm's, plus `beside`, the sum's. `of_weight`
    gets the weight's added.

    With r = 1 / √(mean x² + ε) and y = x · r · w: ∂ / ∂w = Σ over lines of g · x · r, and
    ∂ / ∂x = g · w · r − x · r³ · mean(g · w · x).
    """
    count, width = states.shape
    block = np.empty(width, f4)
    for first in range(0, count, LINES):
        fill(block, f4(0))
        for i in range(first, min(first + LINES, count)):
            inverse, mean = inverses[i], f4(0)
            for j in range(width):
                mean += gradient[i, j] * weight[j] * states[i, j]
            shrink = mean / f4(width) * inverse * inverse * inverse
            for j in range(width):
                block[j] += gradient[i, j] * states[i, j] * inverse
                of_states[i, j] = beside[i, j] + gradient[i, j] * weight[j] * inverse - states[i, j] * shrink
        for j in range(width):
            of_weight[j] += block[j]


@compiled()
def _opposite(into: Floats, line: Floats) -> None:
    """−line, no larger than LARGEST; NaN does not matter, since it comes again as a factor."""
    for j in range(len(line)):
        into[j] = -line[j] if -line[j] < LARGEST else LARGEST


@compiled()
def activate(gate: Floats, up: Floats, out: Floats) -> None:
    """out = silu(gate) · up = gate · up / (1 + exp(−gate))."""
    room = scratch(PIECE)
    for start in range(0, len(gate), PIECE):
        g, u, o = gate[start : start + PIECE], up[start : start + PIECE], out[start : start + PIECE]
        powers = room[: len(g)]
        _opposite(powers, g)
        exponentials(powers, f4(0))
        for j in range(len(g)):
            o[j] = g[j] * u[j] / (f4(1) + powers[j])


@compiled("contract")
def _differentiate_piece(
    powers: Floats, gate: Floats, up: Floats, gradient: Floats, of_gate: Floats, of_up: Floats
) -> None:
    for j in range(len(gate)):
        share = f4(1) / (f4(1) + powers[j])
        of_up[j] = gradient[j] * gate[j] * share
        of_gate[j] = gradient[j] * up[j] * share * (f4(1) + gate[j] * (f4(1) - share))


@compiled()
def differentiate_activation(gate: Floats, up: Floats, gradient: Floats, of_gate: Floats, of_up: Floats) -> None:
    """With s = 1 / (1 + exp(−g)): ∂ / ∂up = g · s, and ∂ / ∂g = up · s · (1 + g · (1 − s))."""
    room = scratch(PIECE)
    for start in range(0, len(gate), PIECE):
        piece = slice(start, start + PIECE)
        powers = room[: len(gate[piece])]
        _opposite(powers, gate[piece])
        exponentials(powers, f4(0))
        _differentiate_piece(powers, gate[piece], up[piece], gradient[piece], of_gate[piece], of_up[piece])
