"""Which prompts a data set gives, as token ids, and what was done to get them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.data.layout import Layout
from nearstep.data.reader import Counts, PromptReader
from nearstep.data.row_errors import BadRow, counted
from nearstep.data.table import Table
from nearstep.types import PromptInput, Prompts


@dataclass(frozen=True)
class PromptReport:
    """What happened to the rows of a data set on their way to prompts."""

    counts: Counts
    layout: Layout
    max_prompt_length: int | None = None
    bad: tuple[BadRow, ...] = ()  # left out
    notes: tuple[str, ...] = ()  # what else is to be told

    @property
    def dropped(self) -> int:
        """How many rows were left out for their length alone."""
        return self.counts.row_errors.total() - len(self.bad)

    def sentences(self) -> list[str]:
        """One sentence for each thing that changed what the policy sees; none if nothing did."""
        counts, limit, rows = self.counts, f"{self.max_prompt_length} tokens", self.counts.read
        shown = self.layout.format
        whole = " Rewards still see them whole." if shown is not None else ""
        first = f"{self.bad[0].place}{self.bad[0].said}" if self.bad else ""
        row_errors = counted(row.row_error for row in self.bad)
        two_columns = self.layout.has_ids and shown is not None
        column = shown.column if shown is not None else ""
        said = [
            (self.bad, f"{len(self.bad)} of {rows} rows were left out: {row_errors}. The first is {first}."),
            (self.dropped, f"{self.dropped} of {rows} prompts were left out: longer than {limit}."),
            (counts.shortened, f"{counts.shortened} of {rows} posts lost their last paragraphs to fit into {limit}."),
            (counts.cut, f"{counts.cut} of {rows} prompts keep only their last tokens: longer than {limit}.{whole}"),
            (counts.unpadded, f"{counts.unpadded} of {rows} prompts had padding, which was taken off."),
            (counts.eos_taken_off, f"The tokenizer's EOS was taken off the end of {counts.eos_taken_off} prompts."),
            (two_columns, f"The policy sees the column 'input_ids', rewards see {column!r}."),
        ]
        return [*self.notes, *(sentence for holds, sentence in said if holds)]


@dataclass(frozen=True)
class Prompt:
    """One prompt as the policy gets it, as rewards and people see it, and the row that it comes from."""

    ids: list[int]
    shown: PromptInput
    row: Mapping[str, object]


@dataclass(frozen=True)
class PromptSet:
    """Every usable prompt of a data set, in its order, by number from 0."""

    table: Table
    reader: PromptReader
    table_rows: Int[Tensor, " prompts"]  # which row of the table each prompt is
    tokens: Int[Tensor, " tokens"]  # of all prompts, back to back
    ends: Int[Tensor, " prompts"]  # where each prompt's tokens end
    report: PromptReport
    shorter: Mapping[int, int] = field(default_factory=dict)  # row of the table → which shorter version it gives

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The policy's tokenizer."""
        return self.reader.tokenizer.tokenizer

    @property
    def columns(self) -> list[str]:
        """The columns that rewards get beside the prompt."""
        return self.reader.layout.passed_on(self.table.columns)

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

    def prompt(self, number: int) -> Prompt:
        """A prompt as its row has it."""
        place = int(self.table_rows[number])
        row = self.table.rows[place]
        ids = self.ids(number)
        shown, reference = self.reader.shown(row, self.shorter.get(place))
        if shown is None:
            shown = self.tokenizer.decode(ids, skip_special_tokens=True)
        if self.reader.layout.gives_reference(self.table.columns):
            row = {**row, "reference": reference}
        return Prompt(ids, shown, row)

    def subset(self, numbers: Sequence[int]) -> "PromptSet":
        """The set of some of its prompts, in the given order."""
        ids = [torch.tensor(self.ids(number), dtype=torch.int32) for number in numbers]
        ends = torch.tensor([len(prompt) for prompt in ids]).cumsum(0)
        return replace(self, table_rows=self.table_rows[list(numbers)], tokens=torch.cat(ids), ends=ends)


def prompts_of(prompts: Sequence[Prompt], columns: Sequence[str], episodes: Sequence[int]) -> Prompts:
    """Prompts as one batch, one row for each episode."""
    return Prompts(
        ids=[prompt.ids for prompt in prompts],
        inputs=[prompt.shown for prompt in prompts],
        columns={name: [prompt.row.get(name) for prompt in prompts] for name in columns},
        episodes=list(episodes),
    )


def rank_share(count: int, rank: int, world_size: int) -> range:
    """The consecutive items of `count` that are a rank's; shares differ by one at most."""
    return range(count * rank // world_size, count * (rank + 1) // world_size)
