"""Causal attention of packed rows on a CPU and its gradients, one segment after the other, in float32.

The way of FlashAttention-2 (Dao 2023): LANES queries of a head and BLOCK keys at a time, with what is needed of the
softmax carried from block to block; the backward pass computes the weights again from each query's log-sum-exp. Scores
lie key by key, the queries side by side as one vector, so every step is one on vectors (cpu_tiles.py).
"""

import math
from typing import NamedTuple

from nearstep.models.attention_layout import Inputs, Part, Sizes, Table, add, ceiling, give, sizes_of, take
from nearstep.models.cpu_loops import NEVER, compiled, copy, exponentials, f4, fill, scale, scratch
from nearstep.models.cpu_tiles import (
    LANES,
    ROWS,
    Floats,
    Lines,
    add_lines,
    lower,
    multiply,
    raise_to_largest,
    transpose,
)

BLOCK = 256  # keys


class Room(NamedTuple):
    """Memory for LANES queries of one head."""

    asked: Floats  # the queries, their numbers as lines
    of_out: Floats  # the gradient of what they find, as lines too
    weights: Floats  # [BLOCK, LANES]
    of_weights: Floats
    most: Floats  # [LANES], as all that follow
    sums: Floats
    factors: Floats
    zeros: Floats


@compiled()
def _room(sizes: Sizes) -> Room:
    zeros = scratch(LANES)
    fill(zeros, f4(0))
    return Room(
        scratch(sizes.wide * LANES), scratch(sizes.value_wide * LANES), scratch(BLOCK * LANES), scratch(BLOCK * LANES),
        scratch(LANES), scratch(LANES), scratch(LANES), zeros,
    )  # fmt: skip


@compiled()
def attend(inputs: Inputs, table: Table, part: Part, out: Floats, log_sums: Floats) -> None:
    """Write the output [tokens, heads, value_width] and the log-sum-exp [heads, tokens] of all queries that are asked,
    for the heads of a part."""
    sizes, count, room = sizes_of(inputs, table), part.heads * part.group, _room(sizes_of(inputs, table))
    size, value_size = sizes.room * sizes.wide, sizes.room * sizes.value_wide
    keys, values = scratch(part.heads * size), scratch(part.heads * value_size)
    asked, mixed = scratch(count * LANES * sizes.wide), scratch(count * LANES * sizes.value_wide)
    first_head, plain = part.first_head * part.group, inputs.cosines[:0]
    for t in range(table.shape[0]):
        start, length, first_asked, _, prefix = table[t]
        _take_keys(inputs, table[t], part, sizes, keys, values)
        for i in range(first_asked, length, LANES):
            token, rows = start + i, min(LANES, length - i)
            _take_queries(inputs, token, rows, part, asked.reshape(count, LANES, sizes.wide))
            for h in range(count):
                key, value = keys[h // part.group * size :], values[h // part.group * value_size :]
                query, found = asked[h * LANES * sizes.wide :], mixed[h * LANES * sizes.value_wide :]
                _mix(query, key, value, prefix + i, rows, part.window, sizes, room, found)
                for r in range(rows):
                    log_sums[first_head + h, token + r] = room.most[r] + f4(math.log(room.sums[r]))
            found = mixed.reshape(count, LANES, sizes.value_wide)
            give(found, 0, rows, plain, plain, f4(1), out[token:], first_head)


@compiled()
def _mix(
    query: Floats, key: Floats, value: Floats, before: int, rows: int, window: int, sizes: Sizes, room: Room,
    found: Floats,
) -> None:  # fmt: skip
    """What up to LANES queries of one head find, which have `before` keys before them; the room's `most` and `sums` are
    the two parts of their log-sum-exp."""
    first, last = max(0, before + 1 - window), before + rows
    _as_lines(query, sizes.wide, room.asked)
    fill(room.most, NEVER)
    fill(room.sums, f4(0))
    for at in range(first, last, BLOCK):
        seen = min(BLOCK, last - at)
        _score(room.asked, key, at, seen, sizes.width, sizes.wide, room.zeros, room.weights)
        _hide(room.weights, at, seen, before, window)
        copy(room.factors, room.most)
        raise_to_largest(room.most, room.weights, seen)
        lower(room.weights, seen, room.most)
        exponentials(room.weights[: seen * LANES], f4(0))
        if at > first:  # what was found before was weighted against another maximum
            lower(room.factors, 1, room.most)
            exponentials(room.factors, f4(0))
            _scale(found, sizes.value_wide, room.factors)
            for r in range(LANES):
                room.sums[r] *= room.factors[r]
        add_lines(room.sums, room.weights, seen)
        _sum_over_keys(room.weights, value, at, seen, sizes.value_wide, at == first, room.zeros, found)
    for r in range(LANES):
        room.factors[r] = f4(1) / room.sums[r]
    _scale(found, sizes.value_wide, room.factors)


@compiled()
def differentiate(
    inputs: Inputs, table: Table, part: Part, log_sums: Floats, of_out: Floats, shifts: Floats, gradients: Inputs
) -> None:
    """Write the gradients of all three inputs, for the heads of a part. `shifts` [tokens, heads] are the products of
    every output with its gradient. A prefix must come before what sees it."""
    sizes, count, room = sizes_of(inputs, table), part.heads * part.group, _room(sizes_of(inputs, table))
    size, value_size = sizes.room * sizes.wide, sizes.room * sizes.value_wide
    keys, values = scratch(part.heads * size), scratch(part.heads * value_size)
    of_keys, of_values = scratch(len(keys)), scratch(len(values))
    asked, of_asked = scratch(count * LANES * sizes.wide), scratch(count * LANES * sizes.wide)
    of_found = scratch(count * LANES * sizes.value_wide)
    first_head, plain = part.first_head * part.group, inputs.cosines[:0]
    for t in range(table.shape[0]):
        start, length, first_asked, _, prefix = table[t]
        _take_keys(inputs, table[t], part, sizes, keys, values)
        _clear(of_keys, prefix + length, part.heads, size, sizes.wide)
        _clear(of_values, prefix + length, part.heads, value_size, sizes.value_wide)
        for i in range(first_asked, length, LANES):
            token, rows = start + i, min(LANES, length - i)
            _take_queries(inputs, token, rows, part, asked.reshape(count, LANES, sizes.wide))
            found = of_found.reshape(count, LANES, sizes.value_wide)
            take(of_out[token:], first_head, rows, plain, plain, f4(1), found, 0)
            for h in range(count):
                for r in range(rows):
                    room.most[r], room.sums[r] = (
                        -log_sums[first_head + h, token + r],
                        -shifts[token + r, first_head + h],
                    )
                k, v, q = h // part.group * size, h // part.group * value_size, h * LANES * sizes.wide
                o = h * LANES * sizes.value_wide
                _unmix(
                    asked[q:], keys[k:], values[v:], of_found[o:], prefix + i, rows, part.window, sizes, room,
                    of_asked[q:], of_keys[k:], of_values[v:],
                )  # fmt: skip
            _give_queries(of_asked.reshape(count, LANES, sizes.wide), token, rows, part, gradients)
        _give_keys(table[t], part, sizes, of_keys, of_values, gradients)


@compiled()
def _unmix(
    query: Floats, key: Floats, value: Floats, of_found: Floats, before: int, rows: int, window: int, sizes: Sizes,
    room: Room, of_query: Floats, of_key: Floats, of_value: Floats,
) -> None:  # fmt: skip
    """The gradient of up to LANES queries of one head; add to those of keys and values. The room's `most` and `sums`
    are the log-sum-exps and shifts, negative."""
    first, last = max(0, before + 1 - window), before + rows
    _as_lines(query, sizes.wide, room.asked)
    _as_lines(of_found, sizes.value_wide, room.of_out)
    for at in range(first, last, BLOCK):
        seen = min(BLOCK, last - at)
        _score(room.asked, key, at, seen, sizes.width, sizes.wide, room.most, room.weights)
        _hide(room.weights, at, seen, before, window)
        exponentials(room.weights[: seen * LANES], f4(0))
        _score(room.of_out, value, at, seen, sizes.value_width, sizes.value_wide, room.sums, room.of_weights)
        for j in range(seen * LANES):
            room.of_weights[j] *= room.weights[j]
        whole = ceiling(seen, ROWS)  # keys that are worked on, and must get nothing if they are not seen
        fill(room.weights[seen * LANES : whole * LANES], f4(0))
        fill(room.of_weights[seen * LANES : whole * LANES], f4(0))
        _sum_over_keys(room.of_weights, key, at, seen, sizes.wide, at == first, room.zeros, of_query)
        _sum_over_queries(room.of_weights, query, rows, at, seen, sizes.wide, of_key)
        _sum_over_queries(room.weights, of_found, rows, at, seen, sizes.value_wide, of_value)


@compiled()
def _clear(rows: Floats, count: int, heads: int, size: int, wide: int) -> None:
    """Zeros in the first rows of every head."""
    for h in range(heads):
        fill(rows[h * size : h * size + count * wide], f4(0))


@compiled()
def _as_lines(rows: Floats, wide: int, into: Floats) -> None:
    """LANES rows of `wide` numbers as `wide` lines of LANES."""
    for d in range(0, wide, LANES):
        transpose(Lines(into, d * LANES, LANES), Lines(rows, d, wide))


@compiled()
def _score(
    asked: Floats, states: Floats, at: int, seen: int, width: int, wide: int, start: Floats, scores: Floats
) -> None:
    """scores[j, r] = start[r] + state j · query r, for `seen` states from `at` on, and up to a whole tile anything."""
    for j in range(0, seen, ROWS):
        of_states = Lines(states, (at + j) * wide, wide)
        multiply(Lines(scores, j * LANES, LANES), Lines(start, 0, 0), of_states, 1, Lines(asked, 0, LANES), width)


@compiled()
def _hide(scores: Floats, at: int, seen: int, before: int, window: int) -> None:
    """What a query does not see scores too little to matter: keys after itself, and those before its window."""
    for key in range(max(at, before + 1), at + seen):
        for r in range(min(LANES, key - before)):
            scores[(key - at) * LANES + r] = NEVER
    for key in range(at, min(at + seen, before + LANES - window)):
        for r in range(max(0, key - before + window), LANES):
            scores[(key - at) * LANES + r] = NEVER


@compiled()
def _sum_over_keys(
    weights: Floats, states: Floats, at: int, seen: int, wide: int, fresh: bool, zeros: Floats, into: Floats
) -> None:
    """into[r] += Σ_j weights[j, r] · state j, for `seen` states from `at` on. `fresh`: into[r] = that."""
    for r in range(0, LANES, ROWS):
        for d in range(0, wide, LANES):
            there, across = Lines(into, r * wide + d, wide), Lines(weights, r, 1)
            start = Lines(zeros, 0, 0) if fresh else there
            multiply(there, start, across, LANES, Lines(states, at * wide + d, wide), seen)


@compiled()
def _sum_over_queries(weights: Floats, states: Floats, rows: int, at: int, seen: int, wide: int, into: Floats) -> None:
    """into[j] += Σ_r weights[j, r] · state r, for `seen` lines from `at` on, up to a whole tile."""
    for j in range(0, seen, ROWS):
        for d in range(0, wide, LANES):
            there = Lines(into, (at + j) * wide + d, wide)
            multiply(there, there, Lines(weights, j * LANES, LANES), 1, Lines(states, d, wide), rows)


@compiled()
def _scale(lines: Floats, wide: int, factors: Floats) -> None:
    """Each of LANES lines times a factor of its own."""
    for r in range(LANES):
        scale(lines[r * wide : (r + 1) * wide], factors[r])


@compiled()
def _take_queries(inputs: Inputs, token: int, rows: int, part: Part, into: Floats) -> None:
    """Some queries of all heads of a part, scaled."""
    head, cosines, sines = inputs.firsts[0] + part.first_head * part.group, inputs.cosines[token:], inputs.sines[token:]
    take(inputs.query[token:], head, rows, cosines, sines, part.scaling, into, 0)


@compiled()
def _give_queries(rows: Floats, token: int, count: int, part: Part, gradients: Inputs) -> None:
    """Their gradients, the way back."""
    head, cosines = gradients.firsts[0] + part.first_head * part.group, gradients.cosines[token:]
    give(rows, 0, count, cosines, gradients.sines[token:], part.scaling, gradients.query[token:], head)


@compiled()
def _take_keys(inputs: Inputs, line: Table, part: Part, sizes: Sizes, keys: Floats, values: Floats) -> None:
    """Keys and values of a segment, behind those of its prefix."""
    start, length, _, prefix_start, prefix = line
    into, values_into = (
        keys.reshape(part.heads, sizes.room, sizes.wide),
        values.reshape(part.heads, sizes.room, sizes.value_wide),
    )
    key, value, plain = inputs.firsts[1] + part.first_head, inputs.firsts[2] + part.first_head, inputs.cosines[:0]
    for token, count, row in ((prefix_start, prefix, 0), (start, length, prefix)):
        cosines, sines = inputs.cosines[token:], inputs.sines[token:]
        take(inputs.key[token:], key, count, cosines, sines, f4(1), into, row)
        take(inputs.value[token:], value, count, plain, plain, f4(1), values_into, row)


@compiled()
def _give_keys(line: Table, part: Part, sizes: Sizes, of_keys: Floats, of_values: Floats, gradients: Inputs) -> None:
    """Their gradients: those of the segment are written, those of the prefix added."""
    start, length, _, prefix_start, prefix = line
    keys, values = (
        of_keys.reshape(part.heads, sizes.room, sizes.wide),
        of_values.reshape(part.heads, sizes.room, sizes.value_wide),
    )
    key, value, plain = (
        gradients.firsts[1] + part.first_head,
        gradients.firsts[2] + part.first_head,
        gradients.cosines[:0],
    )
    cosines, sines = gradients.cosines[start:], gradients.sines[start:]
    give(keys, prefix, length, cosines, sines, f4(1), gradients.key[start:], key)
    give(values, prefix, length, plain, plain, f4(1), gradients.value[start:], value)
    if prefix > 0:
        cosines, sines = gradients.cosines[prefix_start:], gradients.sines[prefix_start:]
        more = scratch(prefix * part.heads * sizes.width).reshape(prefix, part.heads, sizes.width)
        give(keys, 0, prefix, cosines, sines, f4(1), more, 0)
        add(more, gradients.key[prefix_start:], key)
        more = scratch(prefix * part.heads * sizes.value_width).reshape(prefix, part.heads, sizes.value_width)
        give(values, 0, prefix, plain, plain, f4(1), more, 0)
        add(more, gradients.value[prefix_start:], value)
