"""How values of rows of different lengths, laid back to back, are summed, indexed and walked."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

HASH_MULTIPLIER = 6364136223846793005  # odd, so that no power of it is 0 modulo 2**64


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


def by_row(
    values: Shaped[Tensor, " items"],
    lengths: Int[Tensor, " rows"],
    function: Callable[[Shaped[Tensor, " of_row"]], Shaped[Tensor, " of_row"]],
) -> Shaped[Tensor, " items"]:
    """What `function` makes of every row's items, back to back; it is not asked about empty rows."""
    parts = [function(row) for row in values.split(lengths.tolist()) if len(row)]
    return torch.cat(parts) if parts else function(values.new_zeros(1))[:0]


def lead_lengths(flags: Bool[Tensor, " items"], lengths: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Number of items before every row's first flag, all of them where there is none: [0, 0, 1, 0 | 0] gives [2, 1]."""
    places = torch.where(flags, places_in_row(lengths), lengths[row_numbers(lengths)])
    return lengths.scatter_reduce(0, row_numbers(lengths), places, "amin")


def turn_starts(is_action: Bool[Tensor, " items"], lengths: Int[Tensor, " rows"]) -> Bool[Tensor, " actions"]:
    """Of every action, whether it stands first in its row or behind an item that is none: [0, 1, 1, 0, 1 | 1] gives
    [1, 0, 1, 1]."""
    behind_action = is_action.roll(1) & (places_in_row(lengths) > 0)
    return ~behind_action[is_action]


def run_lengths(starts: Bool[Tensor, " items"]) -> Int[Tensor, " runs"]:
    """Number of items of every run, each of which begins where `starts` is true: [1, 0, 1, 1, 0] gives [2, 1, 2]."""
    counts: Tensor = torch.unique_consecutive(starts.cumsum(0), return_counts=True)[1]
    return counts


def shared_leads(
    items: Int[Tensor, " items"], lengths: Int[Tensor, " rows"], leads: Int[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """`leads` where a row begins with the same `leads` items as the row before it does, 0 elsewhere and in row 0."""
    rows, places, starts = row_numbers(lengths), places_in_row(lengths), row_starts(lengths)
    alike = (leads == leads.roll(1)).index_fill(0, torch.zeros(min(1, len(leads)), dtype=torch.long), False)
    compared = (places < leads[rows]) & alike[rows]
    twins = torch.where(compared, starts[rows - 1] + places, 0)
    differ = sum_by_row((compared & (items != items[twins])).long(), lengths)
    return torch.where(alike & (differ == 0), leads, 0)


def first_alike(
    items: Int[Tensor, " items"], lengths: Int[Tensor, " rows"], leads: Int[Tensor, " rows"]
) -> Int[Tensor, " rows"]:
    """Number of the first row with the same lead: rows [7, 1], [8], [7, 2] with leads of 1 give [0, 1, 0].

    Leads are told apart by a hash of 64 bits: enough to put rows in order, not to take one for the other.
    """
    rows, places = row_numbers(lengths), places_in_row(lengths)
    width = int(lengths.max()) if len(lengths) else 0
    powers = torch.full((width,), HASH_MULTIPLIER, device=items.device).cumprod(0)  # modulo 2**64
    keys = sum_by_row(torch.where(places < leads[rows], (items + 1) * powers[places], 0), lengths)
    numbers = keys.unique(return_inverse=True)[1]
    firsts = torch.full_like(numbers, len(lengths)).scatter_reduce(
        0, numbers, torch.arange(len(lengths), device=items.device), "amin"
    )
    return firsts[numbers]


def row_groups(lengths: list[int], max_tokens: int, max_rows: int, shared: list[int] | None = None) -> Iterator[range]:
    """Cut consecutive rows into groups of at most `max_tokens` tokens and `max_rows` rows, at least one row each.

    `shared` tokens of a row cost nothing in the group of the row before it.
    """
    start, tokens = 0, 0
    for row, length in enumerate(lengths):
        more = length - (shared[row] if shared else 0)
        if row > start and (tokens + more > max_tokens or row - start >= max_rows):
            yield range(start, row)
            start, tokens = row, 0
        tokens += more if row > start else length
    if start < len(lengths):
        yield range(start, len(lengths))
