"""Which tokens a forward pass computes, and where: rows back to back, a prompt that neighbours share only once."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, row_numbers, row_starts, shared_leads
from nearstep.models.attention.choice import plan_of
from nearstep.models.attention.interface import AttentionPlan, Segment


@dataclass(frozen=True)
class Packed:
    """The input of one forward pass over rows, and where in it each of their tokens is computed."""

    tokens: Int[Tensor, " packed"]
    positions: Int[Tensor, " packed"]  # places in the row, so they restart with every row
    plan: AttentionPlan
    places: Int[Tensor, " tokens"]


def pack(tokens: Int[Tensor, " tokens"], lengths: Int[Tensor, " rows"], leads: Int[Tensor, " rows"]) -> Packed:
    """Rows whose first `leads` tokens are computed once where neighbours have the same."""
    rows, places = row_numbers(lengths), places_in_row(lengths)
    shared = shared_leads(tokens, lengths, leads)
    computed = places >= shared[rows]
    numbers = torch.arange(len(lengths), device=tokens.device)
    first_alike = torch.where(shared == 0, numbers, 0).cummax(0).values
    twins = row_starts(lengths)[first_alike[rows]] + places
    where_computed = computed.cumsum(0) - 1
    return Packed(
        tokens=tokens[computed],
        positions=places[computed],
        plan=plan_of(_segments(*torch.stack([lengths, leads, shared]).tolist()), tokens.device),
        places=where_computed[torch.where(computed, torch.arange(len(tokens), device=tokens.device), twins)],
    )


def _segments(lengths: list[int], leads: list[int], shared: list[int]) -> tuple[Segment, ...]:
    """One segment for a row that is alone; for rows that share a lead, one for the lead and one for each rest."""
    segments: list[Segment] = []
    prefix = 0
    for row, (length, lead) in enumerate(zip(lengths, leads, strict=True)):
        followed = row + 1 < len(lengths) and shared[row + 1] > 0
        if shared[row] == 0 and not followed:
            segments.append(Segment(length))
            continue
        if shared[row] == 0:
            prefix = len(segments)
            segments.append(Segment(lead))
        if length > lead:
            segments.append(Segment(length - lead, prefix))
    return tuple(segments)
