"""Ragged indexing, against the plain way of doing it with Python lists."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.algorithm.ragged import (
    first_alike,
    lead_lengths,
    places_in_row,
    row_numbers,
    shared_leads,
    sum_by_row,
    take_rows,
)

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
def test_sums(lengths):
    values = torch.arange(1.0, sum(lengths) + 1)
    counts = torch.tensor(lengths)
    assert sum_by_row(values, counts).tolist() == [float(piece.sum()) for piece in values.split(lengths)]


def test_leads_by_hand():
    flags = torch.tensor([0, 0, 1, 0, 0, 1, 1], dtype=torch.bool)
    assert lead_lengths(flags, torch.tensor([4, 1, 2])).tolist() == [2, 1, 0]


def test_shared_leads_by_hand():
    items = torch.tensor([7, 8, 1, 7, 8, 7, 9, 1, 7, 9, 7])
    lengths, leads = torch.tensor([3, 2, 3, 2, 1]), torch.tensor([2, 2, 2, 2, 1])
    assert shared_leads(items, lengths, leads).tolist() == [0, 2, 0, 2, 0]
    assert first_alike(items, lengths, leads).tolist() == [0, 0, 2, 2, 4]


def test_leads_of_no_rows():
    none = torch.zeros(0, dtype=torch.long)
    assert shared_leads(none, none, none).tolist() == first_alike(none, none, none).tolist() == []


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=3), min_size=1, max_size=6))
def test_leads_against_lists(rows):
    items, lengths = torch.tensor([item for row in rows for item in row]), torch.tensor([len(row) for row in rows])
    expected = [len(row) if number > 0 and rows[number - 1] == row else 0 for number, row in enumerate(rows)]
    assert shared_leads(items, lengths, lengths).tolist() == expected
    assert first_alike(items, lengths, lengths).tolist() == [rows.index(row) for row in rows]
