"""Causal attention of packed rows on a CPU and its gradients, one segment after the other, in float32.

The way of FlashAttention-2 (Dao 2023): the weights of a few queries at a time, never all of them; the backward pass
computes them again from each query's log-sum-exp. A segment's keys and values are laid out anew as blocks with one line
for each of a head's dimensions, so that every loop runs along keys (cpu_loops.py). Queries, keys and values are
[tokens, heads, width], contiguous; they are read token by token, for all heads, as they lie in memory.
"""

import math

from nearstep.models.attention_layout import (
    CHUNK,
    Sizes,
    Table,
    add_back,
    blocks_of,
    ceil_divided,
    clear,
    gather,
    lay_out,
    scatter,
)
from nearstep.models.cpu_loops import (
    KEYS,
    LANES,
    LINE,
    NEVER,
    QUERIES,
    Floats,
    Real,
    add_inner_products,
    add_transposed_products,
    compiled,
    exponentials,
    f4,
    fill,
    largest,
    products,
    scale,
    scratch,
    times_difference,
    total,
)


@compiled()
def attend(
    query: Floats, key: Floats, value: Floats, table: Table, window: int, scaling: Real, first_head: int, heads: int,
    out: Floats, log_sums: Floats,
) -> None:  # fmt: skip
    """Write the output [tokens, heads, value_width] and the log-sum-exp [heads, tokens] of all queries that are asked,
    for `heads` heads of keys from `first_head` on."""
    group, width, value_width = query.shape[1] // key.shape[1], query.shape[2], value.shape[2]
    sizes = Sizes(width, value_width, window, heads, first_head, group, blocks_of(table))
    keys, values = scratch(heads * sizes.blocks * width * LINE), scratch(heads * sizes.blocks * value_width * LINE)
    asked, mixed = scratch(heads * group * CHUNK * width), scratch(heads * group * CHUNK * value_width)
    weights, sums = scratch(sizes.blocks * QUERIES * LINE), scratch(QUERIES)
    first = first_head * group
    for t in range(table.shape[0]):
        start, length, first_asked, prefix_start, prefix = table[t]
        lay_out(key, prefix_start, prefix, start, length, sizes, keys)
        lay_out(value, prefix_start, prefix, start, length, sizes, values)
        for c in range(first_asked, length, CHUNK):
            count = min(CHUNK, length - c)
            gather(query, start + c, count, first, heads * group, scaling, asked)
            for h in range(heads * group):
                k = keys[h // group * sizes.blocks * width * LINE :]
                v = values[h // group * sizes.blocks * value_width * LINE :]
                for i in range(0, count, QUERIES):
                    rows, place = min(QUERIES, count - i), h * CHUNK + i
                    q, o = asked[place * width :], mixed[place * value_width :]
                    _mix(q, k, v, prefix + c + i, rows, sizes, weights, sums, o)
                    for r in range(rows):
                        log_sums[first + h, start + c + i + r] = sums[r]
            scatter(mixed, start + c, count, first, heads * group, f4(1), out)


@compiled()
def _mix(
    q: Floats, k: Floats, v: Floats, before: int, rows: int, sizes: Sizes, weights: Floats, log_sums: Floats, o: Floats
) -> None:
    """The output and the log-sum-exp of up to QUERIES queries of one head, which have `before` keys before them."""
    first, last = _first_seen(before, sizes.window), before + rows
    blocks = range(first // KEYS, ceil_divided(last, KEYS))
    for b in blocks:
        at, n = _span(first, last, b)
        products(weights[b * QUERIES * LINE + at :], q, k[b * sizes.width * LINE + at :], sizes.width, n)
    for r in range(QUERIES):
        most: Real = NEVER
        together: Real = f4(0)
        for b in blocks:
            at, n = _span(first, last, b)
            line = weights[(b * QUERIES + r) * LINE + at :][:n]
            _hide(line, b * KEYS + at, before + r, sizes.window)
            most = largest(line, most)
        for b in blocks:
            at, n = _span(first, last, b)
            line = weights[(b * QUERIES + r) * LINE + at :][:n]
            exponentials(line, most)
            together += total(line)
        log_sums[r] = most + f4(math.log(together))
        for b in blocks:
            at, n = _span(first, last, b)
            scale(weights[(b * QUERIES + r) * LINE + at :][:n], f4(1) / together)
    for b in blocks:
        at, n = _span(first, last, b)
        values = v[b * sizes.value_width * LINE + at :]
        add_inner_products(o, weights[b * QUERIES * LINE + at :], values, sizes.value_width, n, b == first // KEYS)


@compiled()
def differentiate(
    query: Floats, key: Floats, value: Floats, table: Table, window: int, scaling: Real, first_head: int, heads: int,
    log_sums: Floats, out_gradient: Floats, shifts: Floats,
    query_gradient: Floats, key_gradient: Floats, value_gradient: Floats,
) -> None:  # fmt: skip
    """Write the gradients of queries, and add those of keys and values. `shifts` [tokens, heads] are the products of
    every output with its gradient."""
    group, width, value_width = query.shape[1] // key.shape[1], query.shape[2], value.shape[2]
    sizes = Sizes(width, value_width, window, heads, first_head, group, blocks_of(table))
    keys, values = scratch(heads * sizes.blocks * width * LINE), scratch(heads * sizes.blocks * value_width * LINE)
    of_keys, of_values = scratch(len(keys)), scratch(len(values))
    asked, of_asked = scratch(heads * group * CHUNK * width), scratch(heads * group * CHUNK * width)
    of_mixed = scratch(heads * group * CHUNK * value_width)
    weights, of_weights = scratch(QUERIES * LINE), scratch(QUERIES * LINE)
    sums, shift = scratch(QUERIES), scratch(QUERIES)
    first = first_head * group
    for t in range(table.shape[0]):
        start, length, first_asked, prefix_start, prefix = table[t]
        lay_out(key, prefix_start, prefix, start, length, sizes, keys)
        lay_out(value, prefix_start, prefix, start, length, sizes, values)
        clear(of_keys, prefix + length, width, sizes)
        clear(of_values, prefix + length, value_width, sizes)
        for c in range(first_asked, length, CHUNK):
            count = min(CHUNK, length - c)
            gather(query, start + c, count, first, heads * group, scaling, asked)
            gather(out_gradient, start + c, count, first, heads * group, f4(1), of_mixed)
            for h in range(heads * group):
                key_place = h // group * sizes.blocks * width * LINE
                value_place = h // group * sizes.blocks * value_width * LINE
                for i in range(0, count, QUERIES):
                    rows, place = min(QUERIES, count - i), h * CHUNK + i
                    fill(sums, f4(0))
                    fill(shift, f4(0))
                    for r in range(rows):
                        sums[r], shift[r] = log_sums[first + h, start + c + i + r], shifts[start + c + i + r, first + h]
                    _unmix(
                        asked[place * width :], keys[key_place:], values[value_place:], prefix + c + i, rows, sizes,
                        sums, shift, of_mixed[place * value_width :], weights, of_weights,
                        of_asked[place * width :], of_keys[key_place:], of_values[value_place:],
                    )  # fmt: skip
            scatter(of_asked, start + c, count, first, heads * group, scaling, query_gradient)
        add_back(of_keys, prefix_start, prefix, start, length, sizes, key_gradient)
        add_back(of_values, prefix_start, prefix, start, length, sizes, value_gradient)


@compiled()
def _unmix(
    q: Floats, k: Floats, v: Floats, before: int, rows: int, sizes: Sizes,
    log_sums: Floats, shift: Floats, of_o: Floats, weights: Floats, of_weights: Floats,
    of_q: Floats, of_k: Floats, of_v: Floats,
) -> None:  # fmt: skip
    """Add what up to QUERIES queries of one head give to the gradients of queries, keys and values."""
    first, last = _first_seen(before, sizes.window), before + rows
    for b in range(first // KEYS, ceil_divided(last, KEYS)):
        at, n = _span(first, last, b)
        key_place, value_place = b * sizes.width * LINE + at, b * sizes.value_width * LINE + at
        products(weights, q, k[key_place:], sizes.width, n)
        products(of_weights, of_o, v[value_place:], sizes.value_width, n)
        for r in range(QUERIES):
            line = weights[r * LINE : r * LINE + n]
            _hide(line, b * KEYS + at, before + r, sizes.window)
            exponentials(line, log_sums[r])
            times_difference(of_weights[r * LINE : r * LINE + n], line, shift[r])
        add_inner_products(of_q, of_weights, k[key_place:], sizes.width, n, b == first // KEYS)
        add_transposed_products(of_k[key_place:], q, of_weights, sizes.width, n)
        add_transposed_products(of_v[value_place:], of_o, weights, sizes.value_width, n)


@compiled()
def _hide(line: Floats, first_key: int, itself: int, window: int) -> None:
    """What a query does not see scores too little to matter: keys after itself, and those before its window."""
    below, above = itself + 1 - window - first_key, itself + 1 - first_key
    if below > 0:
        fill(line[:below], NEVER)
    if above < len(line):
        fill(line[max(above, 0) :], NEVER)


@compiled()
def _first_seen(before: int, window: int) -> int:
    """The first key that one of the queries after `before` keys sees, or a few before it, so that vectors are whole."""
    return max(0, before + 1 - window) // LANES * LANES


@compiled()
def _span(first: int, last: int, block: int) -> tuple[int, int]:
    """Where in a block the keys from `first` to `last` begin, and how many there are, in whole vectors."""
    at = max(0, first - block * KEYS)
    return at, ceil_divided(min(KEYS, last - block * KEYS), LANES) * LANES - at
