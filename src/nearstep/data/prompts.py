"""Which prompts a data set gives, as token ids, and what was done to get them."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.data.checks import BadValueError, bad_rows, prompt_input
from nearstep.data.table import Table
from nearstep.data.tokenise import PromptColumns, PromptTokenizer
from nearstep.errors import DataError
from nearstep.types import PromptInput, Prompts


@dataclass(frozen=True)
class PromptReport:
    """What happened to the rows of a data set on their way to prompts."""

    rows: int
    columns: PromptColumns
    max_prompt_length: int | None = None
    dropped: int = 0  # longer than max_prompt_length
    cut: int = 0  # longer than max_prompt_length
    unpadded: int = 0  # had positions with attention_mask 0
    eos_taken_off: int = 0  # texts that the tokenizer had ended with EOS

    def sentences(self) -> list[str]:
        """One sentence for each thing that changed what the policy sees; none if nothing did."""
        limit = f"{self.max_prompt_length} tokens"
        two_columns = self.columns.shown not in (self.columns.ids, None)
        whole = " Rewards still see them whole." if self.columns.shown is not None else ""
        said = [
            (self.dropped, f"{self.dropped} of {self.rows} prompts were left out: longer than {limit}."),
            (self.cut, f"{self.cut} of {self.rows} prompts keep only their last tokens: longer than {limit}.{whole}"),
            (self.unpadded, f"{self.unpadded} of {self.rows} prompts had padding, which was taken off."),
            (self.eos_taken_off, f"The tokenizer's EOS was taken off the end of {self.eos_taken_off} prompts."),
            (two_columns, f"The policy sees the column {self.columns.ids!r}, rewards see {self.columns.shown!r}."),
        ]
        return [sentence for holds, sentence in said if holds]


@dataclass(frozen=True)
class PromptSet:
    """Every usable prompt of a data set, in its order, by number from 0."""

    table: Table
    tokenizer: PreTrainedTokenizerBase
    table_rows: Int[Tensor, " prompts"]  # which row of the table each prompt is
    tokens: Int[Tensor, " tokens"]  # of all prompts, back to back
    ends: Int[Tensor, " prompts"]  # where each prompt's tokens end
    report: PromptReport

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Int[Tensor, " prompts"]:
        """Number of tokens of each prompt."""
        return self.ends.diff(prepend=self.ends.new_zeros(1))

    def ids(self, number: int) -> list[int]:
        """The token ids of a prompt."""
        start = int(self.ends[number - 1]) if number else 0
        return self.tokens[start : int(self.ends[number])].tolist()

    def position(self, number: int) -> str:
        """Where the prompt stands in its data set, as in error messages."""
        return self.table.position(int(self.table_rows[number]))

    def take(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """The prompts of the given numbers, one row each, for the given episodes."""
        rows = {number: self.table.rows[int(self.table_rows[number])] for number in set(numbers)}
        names = [name for name in self.table.columns if name not in self.report.columns.own]
        return Prompts(
            ids=[self.ids(number) for number in numbers],
            inputs=[self._shown(number, rows[number]) for number in numbers],
            columns={name: [rows[number].get(name) for number in numbers] for name in names},
            episodes=list(episodes),
        )

    def in_order(self, chunk_size: int, *, rank: int = 0, world_size: int = 1) -> Iterator[Prompts]:
        """Every prompt once, in order, `chunk_size` over all ranks at a time; `episodes` are the prompts' numbers.

        All ranks get equally many chunks; those of the last may be empty.
        """
        for start in range(0, len(self), chunk_size):
            share = rank_share(min(chunk_size, len(self) - start), rank, world_size)
            numbers = range(start + share.start, start + share.stop)
            yield self.take(numbers, numbers)

    def _shown(self, number: int, row: Mapping[str, object]) -> PromptInput:
        if self.report.columns.shown is not None:
            return prompt_input(row, self.report.columns.shown)
        text: str = self.tokenizer.decode(self.ids(number), skip_special_tokens=True)
        return text


def rank_share(count: int, rank: int, world_size: int) -> range:
    """The consecutive items of `count` that are a rank's; shares differ by one at most."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)


def encode_prompts(
    table: Table,
    tokenizer: PreTrainedTokenizerBase,
    *,
    vocab_size: int,
    max_prompt_length: int | None = None,
    on_long_prompt: Literal["error", "drop", "cut_left"] = "error",
) -> PromptSet:
    """Tokenise every row, so that a bad one is known before the run starts; `vocab_size` is the policy's.

    Raises `DataError` that names data set, split and, for the first bad rows, place, column and value.
    """
    columns, encoder = PromptColumns.of(table), PromptTokenizer.of(tokenizer, vocab_size)
    encoded, report = _encode_rows(table, encoder, columns)
    longest = sys.maxsize if max_prompt_length is None else max_prompt_length
    long = {row for row, ids in encoded.items() if len(ids) > longest}
    if long and on_long_prompt == "error":
        raise bad_rows(
            table, [(row, _too_long(table, row, columns.ids, len(encoded[row]), longest)) for row in sorted(long)]
        )
    if on_long_prompt == "drop":
        encoded = {row: ids for row, ids in encoded.items() if row not in long}
        report = replace(report, dropped=len(long))
    else:
        encoded = {row: ids[-longest:] if row in long else ids for row, ids in encoded.items()}
        report = replace(report, cut=len(long))
    if not encoded:
        raise DataError(
            f"{table.label}: all {len(table)} prompts are longer than {longest} tokens. Raise max_prompt_length."
        )
    return PromptSet(
        table=table,
        tokenizer=tokenizer,
        table_rows=torch.tensor(list(encoded)),
        tokens=torch.cat(list(encoded.values())),
        ends=torch.tensor([len(ids) for ids in encoded.values()]).cumsum(0),
        report=replace(report, max_prompt_length=max_prompt_length),
    )


def _encode_rows(
    table: Table, encoder: PromptTokenizer, columns: PromptColumns
) -> tuple[dict[int, Tensor], PromptReport]:
    """The ids of every row, whatever their number; raises `DataError` if any row is bad."""
    encoded: dict[int, Tensor] = {}
    bad: list[tuple[int, BadValueError]] = []
    unpadded = eos_taken_off = 0
    for number, row in enumerate(table.rows):
        try:
            prompt = encoder.encode(row, columns.ids)
            if columns.shown is not None:
                prompt_input(row, columns.shown)
        except BadValueError as error:
            bad.append((number, error.with_traceback(None)))  # which would keep its row's frames alive
            continue
        # Python integers would take nine times the memory.
        encoded[number] = torch.tensor(prompt.ids, dtype=torch.int32)
        unpadded += prompt.had_padding
        eos_taken_off += prompt.had_eos
    if bad:
        raise bad_rows(table, bad)
    return encoded, PromptReport(len(table), columns, unpadded=unpadded, eos_taken_off=eos_taken_off)


def _too_long(table: Table, row: int, column: str, length: int, longest: int) -> BadValueError:
    problem = f"{length} tokens, and at most {longest} are allowed"
    remedy = (
        "Set on_long_prompt to drop or cut_left, or raise max_prompt_length as far as the policy's positions allow."
    )
    return BadValueError(column, table.rows[row][column], problem, remedy)
