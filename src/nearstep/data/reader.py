"""How rows become prompts: format, tokenizer and limit of length together, for every way in which rows arrive."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal, TypeAlias

from nearstep.data.files.chunks import Entry
from nearstep.data.formats.format import PromptRow
from nearstep.data.layout import Layout
from nearstep.data.row_errors import BadRow, BadValueError, RowError
from nearstep.data.tokenise import Encoded, PromptTokenizer, Written
from nearstep.types import PromptInput

OnLongPrompt: TypeAlias = Literal["error", "drop", "cut_left"]

BATCH_ROWS = 256  # tokenised at a time


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt as the policy gets it (`ids`) and as rewards and people do (`shown`, None where there are only ids)."""

    ids: list[int]
    shown: PromptInput | None
    reference: str | None = None
    shorter: int | None = None  # which shorter version of the prompt this is
    cut: bool = False  # keeps only its last tokens
    had_padding: bool = False
    had_eos: bool = False


@dataclass(frozen=True)
class ReadRow:
    """A row, its place as its owner counts, and the prompt that was made of it."""

    place: str
    row: Mapping[str, object]
    prompt: ReadPrompt


@dataclass
class Counts:
    """How many rows there were, and what was done to them on their way to prompts."""

    read: int = 0
    row_errors: Counter[RowError] = field(default_factory=Counter)  # of the rows that are left out
    cut: int = 0  # too long, keep only their last tokens
    shortened: int = 0  # too long, gave a shorter version
    unpadded: int = 0  # had positions with attention_mask 0
    eos_taken_off: int = 0  # texts that the tokenizer had ended with EOS
    chats: int = 0

    def add(self, read: ReadRow | BadRow) -> None:
        """Count what became of one row."""
        self.read += 1
        if isinstance(read, BadRow):
            self.row_errors[read.row_error] += 1
            return
        prompt = read.prompt
        self.cut += prompt.cut
        self.shortened += prompt.shorter is not None
        self.unpadded += prompt.had_padding
        self.eos_taken_off += prompt.had_eos
        self.chats += isinstance(prompt.shown, list)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: count + vars(other)[name] for name, count in vars(self).items()})


@dataclass(frozen=True)
class PromptReader:
    """Reads rows as prompts. Rows that are bad or too long come back as the error that says why."""

    layout: Layout
    tokenizer: PromptTokenizer
    max_prompt_length: int | None = None
    on_long_prompt: OnLongPrompt = "error"

    def read(self, entries: Iterable[Entry], owner_names: Mapping[str, str]) -> Iterator[ReadRow | BadRow]:
        """What becomes of each entry, in order; `owner_names` is what the user calls columns that have our names."""
        coming = iter(entries)
        while batch := list(islice(coming, BATCH_ROWS)):
            read = iter(self._read([entry[1] for entry in batch if not isinstance(entry, BadRow)]))
            for entry in batch:
                if isinstance(entry, BadRow):
                    yield entry
                    continue
                place, row = entry
                prompt = next(read)
                if isinstance(prompt, BadValueError):
                    prompt.column = owner_names.get(prompt.column, prompt.column)
                    yield BadRow.of(prompt, place)
                else:
                    yield ReadRow(place, row, prompt)

    def drops(self, row: BadRow) -> bool:
        """Whether the row is only too long, and such rows shall be left out."""
        return row.row_error is RowError.LONG and self.on_long_prompt == "drop"

    def _read(self, rows: Sequence[Mapping[str, object]]) -> list[ReadPrompt | BadValueError]:
        """One prompt or error for each row, in order."""
        entries: list[tuple[PromptRow | None, Written | Encoded] | BadValueError] = [self._prepare(row) for row in rows]
        ready = [entry for entry in entries if not isinstance(entry, BadValueError)]
        encoded = iter(self.tokenizer.encode([written for _, written in ready if isinstance(written, Written)]))
        read: list[ReadPrompt | BadValueError] = []
        for row, entry in zip(rows, entries, strict=True):
            if isinstance(entry, BadValueError):
                read.append(entry)
                continue
            prompt, made = entry
            try:
                read.append(self._finish(row, prompt, next(encoded) if isinstance(made, Written) else made))
            except BadValueError as error:
                read.append(error)
        return read

    def shown(self, row: Mapping[str, object], shorter: int | None = None) -> tuple[PromptInput | None, str | None]:
        """The prompt of a row that was read before, as rewards see it, and its reference."""
        if self.layout.format is None:
            return None, None
        prompt = self.layout.format.prompt(row)
        shown = prompt.prompt if shorter is None else prompt.shorter[shorter]
        return self.tokenizer.shown(shown), prompt.reference

    def _prepare(self, row: Mapping[str, object]) -> tuple[PromptRow | None, Written | Encoded] | BadValueError:
        """Everything before the tokenizer, which takes many texts at once."""
        try:
            prompt = None if self.layout.format is None else self.layout.format.prompt(row)
            if self.layout.has_ids:
                return prompt, self.tokenizer.given(row)
            assert prompt is not None
            return prompt, self.tokenizer.write(prompt.prompt, self.layout.ids_column, row)
        except BadValueError as error:
            return error

    def _finish(self, row: Mapping[str, object], prompt: PromptRow | None, encoded: Encoded) -> ReadPrompt:
        column = self.layout.ids_column
        self.tokenizer.check(encoded.ids, column, row.get(column))
        shown = None if prompt is None else self.tokenizer.shown(prompt.prompt)
        reference = None if prompt is None else prompt.reference
        read = ReadPrompt(encoded.ids, shown, reference, had_padding=encoded.had_padding, had_eos=encoded.had_eos)
        limit = self.max_prompt_length
        if limit is None or len(read.ids) <= limit:
            return read
        if prompt is not None and not self.layout.has_ids:
            shortened = self._shortened(read, prompt, limit, row)
            if shortened is not None:
                return shortened
        if self.on_long_prompt == "cut_left":
            return replace(read, ids=read.ids[-limit:], cut=True)
        problem = f"{len(read.ids)} tokens, and at most {limit} are allowed"
        remedy = (
            "Set on_long_prompt to drop or cut_left, or raise max_prompt_length as far as the policy's positions allow."
        )
        raise BadValueError(RowError.LONG, column, row.get(column), problem, remedy)

    def _shortened(
        self, read: ReadPrompt, prompt: PromptRow, limit: int, row: Mapping[str, object]
    ) -> ReadPrompt | None:
        """The longest of the prompt's shorter versions that fits, if any does."""

        def ids(number: int) -> list[int]:
            written = self.tokenizer.write(prompt.shorter[number], self.layout.ids_column, row)
            return self.tokenizer.encode([written])[0].ids

        number = bisect_left(range(len(prompt.shorter)), True, key=lambda number: len(ids(number)) <= limit)
        if number == len(prompt.shorter):
            return None
        shown = self.tokenizer.shown(prompt.shorter[number])
        return replace(read, ids=ids(number), shown=shown, shorter=number)
