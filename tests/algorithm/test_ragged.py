"""Ragged indexing, against the plain way of doing it with Python lists."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.ragged import from_padded, places_in_row, row_numbers, sum_by_row, take_rows, to_padded

lengths_of_rows = st.lists(st.integers(0, 5), min_size=1, max_size=6)


def test_row_numbers_and_places_by_hand():
    lengths = torch.tensor([2, 0, 1])
    assert row_numbers(lengths).tolist() == [0, 0, 2]
    assert places_in_row(lengths).tolist() == [0, 1, 0]


@given(lengths_of_rows, st.data())
def test_take_rows_is_concatenation_of_the_rows(lengths, data):
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    items = torch.arange(sum(lengths))
    pieces = items.split(lengths)
    expected = [number for row in rows for number in pieces[row].tolist()]
    assert items[take_rows(torch.tensor(lengths), torch.tensor(rows, dtype=torch.long))].tolist() == expected


@given(lengths_of_rows)
def test_sums_and_padding(lengths):
    values = torch.arange(1.0, sum(lengths) + 1)
    counts = torch.tensor(lengths)
    assert sum_by_row(values, counts).tolist() == [float(piece.sum()) for piece in values.split(lengths)]
    padded = to_padded(values, counts)
    assert padded.sum() == values.sum()
    assert torch.equal(from_padded(padded, counts), values)
