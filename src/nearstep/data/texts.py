"""How the rows of a table become texts to be predicted: whole documents, or prompts with their answers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from nearstep.common.errors import ConfigError, DataError
from nearstep.data.checks import text_of
from nearstep.data.files.chunks import Entry
from nearstep.data.layout import layout_of
from nearstep.data.prompts import rank_share
from nearstep.data.reader import BATCH_ROWS, PromptReader
from nearstep.data.row_errors import BadRow, BadValueError, RowError, bad_rows, counted
from nearstep.data.table import Table
from nearstep.data.text_rows import TextRows
from nearstep.data.tokenise import PromptTokenizer, Written
from nearstep.scale.backend import Backend


@dataclass(frozen=True)
class ReadTexts:
    """The texts of a table, and a sentence on rows that were left out."""

    rows: TextRows
    notes: tuple[str, ...]


def read_texts(
    table: Table,
    tokenizer: PromptTokenizer,
    *,
    column: str,
    longest: int,
    on_bad_row: Literal["raise", "drop"],
    backend: Backend,
) -> ReadTexts:
    """Every row as a text that ends with EOS, in rows of at most `longest` tokens. Each process reads a share for all.

    With the column, all of the text is predicted but its first token. Without it, rows are read as prompts with an
    answer, and the answer alone is predicted: as the policy would write it, behind the prompt that it would get. Raises
    DataError where rows cannot be read so, ConfigError where the tokenizer has no EOS.
    """
    eos = tokenizer.tokenizer.eos_token_id
    if eos is None:
        raise ConfigError("ptx: every text ends with EOS, and the tokenizer has none: set tokenizer.eos_token")
    if column in table.columns:
        reader: _Documents | _PromptsWithAnswers = _Documents(replace(tokenizer, style="none"), column, eos)
    else:
        reader, table = _answers(table, tokenizer, column, eos)
    share = rank_share(len(table), backend.rank, backend.world_size)
    entries = ((table.position(number), table.rows[number]) for number in share)
    read = list(reader.read(table, entries))
    own = TextRows.of([each for each in read if not isinstance(each, BadRow)], longest)
    found = backend.gather((own, [each for each in read if isinstance(each, BadRow)]))
    rows = TextRows.joined([part for part, _ in found])
    bad = (*table.broken, *(each for _, part in found for each in part))
    if bad and on_bad_row == "raise":
        raise bad_rows(table.label, bad, len(table) + len(table.broken))
    if not len(rows):
        raise DataError(f"{table.label}: none of its {len(table)} rows has a token to be predicted")
    why = f"{len(bad)} rows of {table.label}, were left out: {counted(row.row_error for row in bad)}."
    return ReadTexts(rows, (why,) if bad else ())


@dataclass(frozen=True)
class _Documents:
    """Rows that hold a whole text in a column."""

    tokenizer: PromptTokenizer
    column: str
    eos: int

    def read(self, table: Table, entries: Iterator[Entry]) -> Iterator[tuple[Sequence[int], int] | BadRow]:
        """Every row as ids, of which the first is given, or what is wrong with it."""
        while batch := list(islice(entries, BATCH_ROWS)):
            texts = [self._written(entry) for entry in batch]
            encoded = iter(self.tokenizer.encode([text for text in texts if isinstance(text, Written)]))
            for text in texts:
                yield ([*next(encoded).ids, self.eos], 1) if isinstance(text, Written) else text

    def _written(self, entry: Entry) -> Written | BadRow:
        if isinstance(entry, BadRow):
            return entry
        place, row = entry
        try:
            return self.tokenizer.write(text_of(row, self.column), self.column, row)
        except BadValueError as error:
            return BadRow.of(error, place)


@dataclass(frozen=True)
class _PromptsWithAnswers:
    """Rows that hold a prompt and an answer to it."""

    reader: PromptReader
    eos: int

    def read(self, table: Table, entries: Iterator[Entry]) -> Iterator[tuple[Sequence[int], int] | BadRow]:
        """Every row as ids, of which those of the prompt are given, or what is wrong with it."""
        tokenizer = self.reader.tokenizer.tokenizer
        for read in self.reader.read(entries, table.renamed):
            if isinstance(read, BadRow):
                yield read
                continue
            prompt, answer = read.prompt.ids, read.prompt.reference
            if answer:
                ids = tokenizer(answer, add_special_tokens=False, verbose=False)["input_ids"]
                yield [*prompt, *ids, self.eos], len(prompt)
                continue
            remedy = "Give every row an answer, or take the row out."
            error = BadValueError(RowError.NO_VALUE, "completion", answer, "there is no answer", remedy)
            yield BadRow.of(error, read.place)


def _answers(table: Table, tokenizer: PromptTokenizer, column: str, eos: int) -> tuple[_PromptsWithAnswers, Table]:
    """A reader of prompts and answers, and the table as it reads it. Raises DataError where there are no answers."""
    layout = None if "input_ids" in table.columns else layout_of(table)
    if layout is None or layout.format is None or not layout.format.has_reference:
        raise DataError(
            f"{table.label}: it has no column {column!r}, and no prompts with answers either, only "
            f"{list(table.columns)}. Name the column of texts (ptx_text_column), or give rows such as "
            "{'prompt': '…', 'completion': '…'}."
        )
    return _PromptsWithAnswers(PromptReader(layout, tokenizer), eos), layout.format.prompt_rows(table)
