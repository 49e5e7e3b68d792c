"""What a decoder layer does between its products, on a CPU and in one pass each: float32, compiled by numba.

Root-mean-square norms, rotary positions of heads whose halves turn against each other, silu(gate) · up; each with its
gradient. No two arguments may share memory.
"""

import numpy as np

from nearstep.models.cpu_loops import Floats, Real, compiled, exponentials, f4, fill, inner_product, scratch, sums

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


@compiled("contract")
def part_and_turn(joined: Floats, cosines: Floats, sines: Floats, query: Floats, key: Floats, value: Floats) -> None:
    """Queries and keys, turned to their positions, and values from [tokens, heads of all three, width].

    A head x = (x₁, x₂) becomes x · cos + (−x₂, x₁) · sin. Written out for both: calls and slices take longer than the
    few numbers of a head.
    """
    heads, kv_heads, half = query.shape[1], key.shape[1], query.shape[2] // 2
    for i in range(joined.shape[0]):
        for h in range(heads):
            for j in range(half):
                query[i, h, j] = joined[i, h, j] * cosines[i, j] - joined[i, h, half + j] * sines[i, j]
            for j in range(half):
                turned = joined[i, h, half + j] * cosines[i, half + j] + joined[i, h, j] * sines[i, half + j]
                query[i, h, half + j] = turned
        for h in range(kv_heads):
            k, v = heads + h, heads + kv_heads + h
            for j in range(half):
                key[i, h, j] = joined[i, k, j] * cosines[i, j] - joined[i, k, half + j] * sines[i, j]
            for j in range(half):
                turned = joined[i, k, half + j] * cosines[i, half + j] + joined[i, k, j] * sines[i, half + j]
                key[i, h, half + j] = turned
            for j in range(2 * half):
                value[i, h, j] = joined[i, v, j]


@compiled("contract")
def turn_back_and_join(
    query: Floats, key: Floats, value: Floats, cosines: Floats, sines: Floats, joined: Floats
) -> None:
    """The gradient of what `part_and_turn` reads, from those of what it writes: g · cos + (g₂ · sin₂, −g₁ · sin₁)."""
    heads, kv_heads, half = query.shape[1], key.shape[1], query.shape[2] // 2
    for i in range(joined.shape[0]):
        for h in range(heads):
            for j in range(half):
                joined[i, h, j] = query[i, h, j] * cosines[i, j] + query[i, h, half + j] * sines[i, half + j]
            for j in range(half):
                joined[i, h, half + j] = query[i, h, half + j] * cosines[i, half + j] - query[i, h, j] * sines[i, j]
        for h in range(kv_heads):
            k, v = heads + h, heads + kv_heads + h
            for j in range(half):
                joined[i, k, j] = key[i, h, j] * cosines[i, j] + key[i, h, half + j] * sines[i, half + j]
            for j in range(half):
                joined[i, k, half + j] = key[i, h, half + j] * cosines[i, half + j] - key[i, h, j] * sines[i, j]
            for j in range(2 * half):
                joined[i, v, j] = value[i, h, j]


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
