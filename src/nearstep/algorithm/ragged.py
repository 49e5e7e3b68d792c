"""How values of rows of different lengths, laid back to back, are summed, indexed and walked."""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def row_numbers(lengths: Int[Tensor, " rows"]) -> Int[Tensor, " items"]:
    """Row number of every item: lengths [2, 0, 1] give [0, 0, 2]."""
    return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


def row_starts(lengths: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Index of every row's first item: lengths [2, 0, 1] give [0, 2, 2]."""
    return lengths.cumsum(0) - lengths


def places_in_row(lengths: Int[Tensor, " rows"]) -> Int[Tensor, " items"]:
    """Place of every item within its row: lengths [2, 0, 1] give [0, 1, 0]."""
    return torch.arange(int(lengths.sum()), device=lengths.device) - row_starts(lengths)[row_numbers(lengths)]


def take_rows(lengths: Int[Tensor, " rows"], rows: Int[Tensor, " chosen"]) -> Int[Tensor, " items"]:
    """Indices of the items of the chosen rows, in the chosen order: lengths [2, 1], rows [1, 0] give [2, 0, 1]."""
    chosen = lengths[rows]
    starts = row_starts(lengths)[rows]
    return torch.repeat_interleave(starts, chosen) + places_in_row(chosen)


def sum_by_row(values: Shaped[Tensor, " items"], lengths: Int[Tensor, " rows"]) -> Shaped[Tensor, " rows"]:
    """Sum of every row's items; 0 for an empty row."""
    sums = torch.zeros(len(lengths), dtype=values.dtype, device=values.device)
    return sums.index_add(0, row_numbers(lengths), values)


def to_padded(values: Shaped[Tensor, " items"], lengths: Int[Tensor, " rows"]) -> Shaped[Tensor, "rows width"]:
    """Lay rows below each other, zeros at the right."""
    width = int(lengths.max()) if len(lengths) else 0
    padded = torch.zeros(len(lengths), width, dtype=values.dtype, device=values.device)
    padded[row_numbers(lengths), places_in_row(lengths)] = values
    return padded


def from_padded(padded: Shaped[Tensor, "rows width"], lengths: Int[Tensor, " rows"]) -> Shaped[Tensor, " items"]:
    """The inverse of `to_padded`."""
    return padded[row_numbers(lengths), places_in_row(lengths)]
