"""How every row of a table becomes a prompt before a run starts, so that a bad one is known by then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError
from nearstep.data.layout import layout_of
from nearstep.data.prepared import check_prepared, preparation_note, prepared_prompts
from nearstep.data.prompts import PromptReport, PromptSet
from nearstep.data.reader import Counts, OnLongPrompt, PromptReader, ReadRow
from nearstep.data.row_errors import BadRow, bad_rows, counted
from nearstep.data.table import Table
from nearstep.data.tokenise import PromptStyle, PromptTokenizer


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
) -> PromptSet:
    """Tokenise every row, so that a bad one is known before the run starts; `vocab_size` is the policy's.

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
    found = _read(table, reader)
    counts, bad = found.counts, tuple(found.bad)
    if bad and on_bad_row == "raise":
        raise bad_rows(table.label, bad, counts.read)
    if not found.rows and bad:
        why = counted(row.row_error for row in bad)
        raise DataError(f"{table.label}: none of its {counts.read} rows can be used: {why}.")
    if not found.rows:
        raise DataError(
            f"{table.label}: all {counts.read} prompts are longer than {max_prompt_length} tokens. "
            "Raise max_prompt_length."
        )
    report = PromptReport(counts, layout, max_prompt_length, bad, notes)
    ends = torch.tensor([len(ids) for ids in found.ids]).cumsum(0)
    return PromptSet(table, reader, torch.tensor(found.rows), torch.cat(found.ids), ends, report, found.shorter)


@dataclass(frozen=True)
class _Found:
    """What reading a table row by row collects."""

    rows: list[int] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    shorter: dict[int, int] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)


def _read(table: Table, reader: PromptReader) -> _Found:
    """Read every row of a table, those that its files could not give first."""
    found = _Found()
    entries = ((table.position(number), row) for number, row in enumerate(table.rows))
    for number, read in enumerate(reader.read(chain(table.broken, entries), table.renamed), -len(table.broken)):
        found.counts.add(read)
        if isinstance(read, ReadRow):
            found.rows.append(number)
            # Python integers would take nine times the memory.
            found.ids.append(torch.tensor(read.prompt.ids, dtype=torch.int32))
            if read.prompt.shorter is not None:
                found.shorter[number] = read.prompt.shorter
        elif not reader.drops(read):
            found.bad.append(read)
    return found
