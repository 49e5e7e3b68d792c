"""How every row of a table becomes a prompt before a run starts, so that a bad one is known by then."""

from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import DataError
from nearstep.data.layout import layout_of_table
from nearstep.data.prepared import prepared_prompts
from nearstep.data.prompts import PromptReport, PromptSet
from nearstep.data.reader import BATCH_ROWS, OnLongPrompt, PromptReader, ReadPrompt
from nearstep.data.row_errors import BadRow, BadValueError, RowError, bad_rows, counted
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
) -> PromptSet:
    """Tokenise every row, so that a bad one is known before the run starts; `vocab_size` is the policy's.

    Raises `DataError` that names data set, split and, for the first bad rows, place, column and value.
    """
    layout = layout_of_table(table, None if table.prepared is not None else dataset_format)
    reader = PromptReader(
        layout, PromptTokenizer.of(tokenizer, vocab_size, prompt_type), max_prompt_length, on_long_prompt
    )
    if layout.format is not None:
        table = layout.format.prompt_rows(table)
    if table.prepared is not None:
        return prepared_prompts(table, table.prepared, reader, on_bad_row)
    found = _Found.of(table, reader)
    rows, bad = len(table) + len(table.broken), (*table.broken, *found.bad)
    if bad and on_bad_row == "raise":
        raise bad_rows(table.label, bad, rows)
    if not found.rows and bad:
        raise DataError(f"{table.label}: none of its {rows} rows can be used: {counted(row.row_error for row in bad)}.")
    if not found.rows:
        raise DataError(
            f"{table.label}: all {rows} prompts are longer than {max_prompt_length} tokens. Raise max_prompt_length."
        )
    report = PromptReport(
        rows, layout, max_prompt_length, bad, dropped=found.too_long, cut=found.cut, shortened=len(found.shorter),
        unpadded=found.unpadded, eos_taken_off=found.eos_taken_off,
    )  # fmt: skip
    ends = torch.tensor([len(ids) for ids in found.ids]).cumsum(0)
    return PromptSet(table, reader, torch.tensor(found.rows), torch.cat(found.ids), ends, report, found.shorter)


@dataclass
class _Found:
    """What reading a table row by row collects."""

    rows: list[int] = field(default_factory=list)
    ids: list[Tensor] = field(default_factory=list)
    shorter: dict[int, int] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)
    too_long: int = 0
    cut: int = 0
    unpadded: int = 0
    eos_taken_off: int = 0

    @staticmethod
    def of(table: Table, reader: PromptReader) -> "_Found":
        """Read every row of the table."""
        found = _Found()
        rows = iter(table.rows)
        first = 0
        while batch := list(islice(rows, BATCH_ROWS)):
            for number, entry in enumerate(reader.read(batch), start=first):
                found.add(number, entry, table, reader)
            first += len(batch)
        return found

    def add(self, row: int, entry: ReadPrompt | BadValueError, table: Table, reader: PromptReader) -> None:
        """Take in what became of a row."""
        if isinstance(entry, BadValueError):
            if entry.row_error is RowError.LONG and reader.on_long_prompt == "drop":
                self.too_long += 1
            else:
                self.bad.append(table.bad_row(row, entry))
            return
        self.rows.append(row)
        # Python integers would take nine times the memory.
        self.ids.append(torch.tensor(entry.ids, dtype=torch.int32))
        if entry.shorter is not None:
            self.shorter[row] = entry.shorter
        self.cut += entry.cut
        self.unpadded += entry.had_padding
        self.eos_taken_off += entry.had_eos
