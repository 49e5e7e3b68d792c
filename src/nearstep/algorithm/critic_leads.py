"""What a model reads before the first action of each row, where that is not the prompt."""

from dataclasses import dataclass

from jaxtyping import Bool, Int, Shaped
from torch import Tensor

from nearstep.algorithm.ragged import places_in_row, row_numbers, row_starts, take_rows


@dataclass(frozen=True)
class CriticLeads:
    """Tokens that a privileged critic reads before the first action of each row, back to back."""

    tokens: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " rows"]
    cut: Bool[Tensor, " rows"]  # rows whose text was too long: its end is left out

    def select(self, rows: Int[Tensor, " chosen"]) -> "CriticLeads":
        """Those of the given rows, in the given order."""
        return CriticLeads(self.tokens[take_rows(self.lengths, rows)], self.lengths[rows], self.cut[rows])


def swap_leads(
    items: Shaped[Tensor, " items"],
    lengths: Int[Tensor, " rows"],
    leads: Int[Tensor, " rows"],
    new_items: Shaped[Tensor, " new_items"],
    new_leads: Int[Tensor, " rows"],
) -> Shaped[Tensor, " swapped"]:
    """Rows whose first `leads` items are exchanged for others, `new_leads` of them in each row, back to back."""
    rows, places, of_new = row_numbers(lengths), places_in_row(lengths), row_numbers(new_leads)
    kept, starts = places >= leads[rows], row_starts(lengths - leads + new_leads)
    swapped = items.new_empty(int(kept.sum()) + len(new_items))
    swapped[(starts[rows] + places - leads[rows] + new_leads[rows])[kept]] = items[kept]
    swapped[starts[of_new] + places_in_row(new_leads)] = new_items
    return swapped
