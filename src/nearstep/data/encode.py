"""How every row of a table becomes a prompt before a run starts, so that a bad one is known by then."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError
from nearstep.data.files.chunks import Entry
from nearstep.data.layout import layout_of
from nearstep.data.prepared import check_prepared, preparation_note, prepared_prompts
from nearstep.data.prompts import PromptReport, PromptSet, rank_share
from nearstep.data.reader import Counts, OnLongPrompt, PromptReader, ReadRow
from nearstep.data.row_errors import BadRow, bad_rows, counted
from nearstep.data.table import Table
from nearstep.data.tokenise import PromptStyle, PromptTokenizer
from nearstep.scale.backend import Backend


def encode_prompts(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    max_prompt_length: int | None = None,
    on_long_prompt: OnLongPrompt = "error",
    on_bad_row: Literal["raise", "drop"] = "raise",
    dataset_format: str | None = None,
    prompt_type: PromptStyle = "none",
    template_kwargs: Mapping[str, object] | None = None,
    backend: Backend | None = None,
) -> PromptSet:
    """Tokenise every row, so that a bad one is known before the run starts; `vocab_size` is the policy's.

    With a `backend` all its processes call this with the same table, and each tokenises a share for all of them.

    Raises `DataError` that names data set, split and, for the first bad rows, place, column and value.
    """
    layout = layout_of(table, None if table.prepared is not None else dataset_format)
    reader = PromptReader(
        layout,
        PromptTokenizer.of(tokenizer, vocab_size, prompt_type, template_kwargs),
        max_prompt_length,
        on_long_prompt,
    )
    if layout.format is not None:
        table = layout.format.prompt_rows(table)
    notes: tuple[str, ...] = ()
    if table.prepared is not None:
        manifest = table.prepared.manifest
        checked = check_prepared(manifest, reader.tokenizer, table.label)
        notes = (preparation_note(manifest), *checked)
        prompts = prepared_prompts(table, table.prepared, reader, notes)
        if prompts is not None:
            return prompts
    found = _read_by_all(table, reader, backend)
    counts, bad = found.counts, tuple(found.bad)
    if bad and on_bad_row == "raise":
        raise bad_rows(table.label, bad, counts.read)
    if not len(found.rows) and bad:
        why = counted(row.row_error for row in bad)
        raise DataError(f"{table.label}: none of its {counts.read} rows can be used: {why}.")
    if not len(found.rows):
        raise DataError(
            f"{table.label}: all {counts.read} prompts are longer than {max_prompt_length} tokens. "
            "Raise max_prompt_length."
        )
    report = PromptReport(counts, layout, max_prompt_length, bad, notes)
    return PromptSet(table, reader, found.rows, found.tokens, found.lengths.cumsum(0), report, found.shorter)


@dataclass(frozen=True)
class _Found:
    """What reading consecutive rows of a table gives."""

    rows: Int[Tensor, " prompts"]
    tokens: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " prompts"]
    shorter: dict[int, int]
    bad: list[BadRow]
    counts: Counts

    def __add__(self, other: "_Found") -> "_Found":
        return _Found(
            torch.cat([self.rows, other.rows]),
            torch.cat([self.tokens, other.tokens]),
            torch.cat([self.lengths, other.lengths]),
            self.shorter | other.shorter,
            self.bad + other.bad,
            self.counts + other.counts,
        )


def _read_by_all(table: Table, reader: PromptReader, backend: Backend | None) -> _Found:
    """Every row of a table, those that its files could not give first. Each process reads a share for all."""
    if backend is None or backend.world_size == 1:
        return _read(table, reader, range(-len(table.broken), len(table)))
    total, broken = len(table.broken) + len(table), len(table.broken)
    share = rank_share(total, backend.rank, backend.world_size)
    parts = backend.gather(_read(table, reader, range(share.start - broken, share.stop - broken)))
    return reduce(add, parts)


def _read(table: Table, reader: PromptReader, numbers: range) -> _Found:
    """Read rows by their numbers; below 0 stand those that the files could not give."""
    rows: list[int] = []
    ids: list[Tensor] = []
    none = torch.empty(0, dtype=torch.int64)
    found = _Found(none, none, none, {}, [], Counts())
    for number, read in zip(numbers, reader.read(_entries(table, numbers), table.renamed), strict=True):
        found.counts.add(read)
        if isinstance(read, ReadRow):
            rows.append(number)
            # Python integers would take nine times the memory.
            ids.append(torch.tensor(read.prompt.ids, dtype=torch.int32))
            if read.prompt.shorter is not None:
                found.shorter[number] = read.prompt.shorter
        elif not reader.drops(read):
            found.bad.append(read)
    lengths = torch.tensor([len(prompt) for prompt in ids], dtype=torch.int64)
    tokens = torch.cat(ids) if ids else torch.empty(0, dtype=torch.int32)
    return replace(found, rows=torch.tensor(rows, dtype=torch.int64), tokens=tokens, lengths=lengths)


def _entries(table: Table, numbers: range) -> Iterator[Entry]:
    broken = len(table.broken)
    yield from table.broken[numbers.start + broken : max(0, numbers.stop + broken)]
    wanted = range(max(0, numbers.start), numbers.stop)
    # Rows in order are read faster than by number.
    rows = table.rows if wanted == range(len(table)) else (table.rows[number] for number in wanted)
    for number, row in zip(wanted, rows, strict=True):
        yield table.position(number), row
