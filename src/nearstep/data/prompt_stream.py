"""How prompts are played while they are read: in order, through a buffer that shuffles, with a position that is exact.

The prompts of a run are a pure function of data and seed here too, but to find those of update k all before them are
read again: a resumed run reads on from the beginning, and plays the very prompts that the unbroken run would have.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Literal

import torch

from nearstep.common.errors import DataError
from nearstep.common.random_streams import stream
from nearstep.data.ahead import read_ahead
from nearstep.data.files.chunks import Entry
from nearstep.data.mix import weighted_round_robin
from nearstep.data.prompt_source import BatchPlan
from nearstep.data.prompts import Prompt, prompts_of
from nearstep.data.reader import Counts, PromptReader, ReadRow
from nearstep.data.row_errors import BadRow, bad_rows, counted
from nearstep.data.stream import RowStream
from nearstep.types import Prompts


@dataclass(frozen=True)
class PromptStream:
    """The usable prompts of a row stream. `skipped` are rows at its beginning that are held out."""

    rows: RowStream
    reader: PromptReader
    on_bad_row: Literal["raise", "drop"]
    gives_reference: bool
    tell: Callable[[str], None]
    skipped: int = 0

    def prompts(self, number: int) -> Iterator[Prompt]:
        """The prompts of a pass (from 0), in the order of the rows.

        Raises `DataError` naming a bad row once it is reached; dropped ones are counted and told at the end of a pass.
        """
        counts = Counts()
        entries = self._after_skipped(self.rows.entries(number))
        for read in self.reader.read(entries, self.rows.names):
            counts.add(read)
            if isinstance(read, ReadRow):
                yield self._prompt(read)
            elif self.on_bad_row == "raise" and not self.reader.drops(read):
                raise bad_rows(self.rows.label, [read], None)
        rows, left_out = f"{counts.read} rows of {self.rows.label}", counts.row_errors.total()
        why = counted(counts.row_errors.elements())
        if left_out == counts.read:
            raise DataError(f"none of the {rows}, can be used: {why or 'there are none'}.")
        if left_out:
            self.tell(f"{left_out} of {rows}, were left out: {why}.")

    def _after_skipped(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """What comes after the rows that are held out, not counting what cannot be read."""
        skipped = 0
        for entry in entries:
            if skipped < self.skipped and not isinstance(entry, BadRow):
                skipped += 1
            elif skipped == self.skipped:
                yield entry

    def _prompt(self, read: ReadRow) -> Prompt:
        ids, shown = read.prompt.ids, read.prompt.shown
        if shown is None:
            shown = self.reader.tokenizer.tokenizer.decode(ids, skip_special_tokens=True)
        reference = {"reference": read.prompt.reference} if self.gives_reference else {}
        return Prompt(ids, shown, {**read.row, **reference})


@dataclass
class StreamSource:
    """Endless passes over streams, which take turns by their weights; each is shuffled through a buffer of prompts.

    The streams are read in a thread: their tokenizers are nobody else's.
    """

    streams: tuple[PromptStream, ...]
    weights: tuple[float, ...]
    columns: list[str]
    plan: BatchPlan
    buffer: int = 1  # prompts among which the next is drawn; 1 for the order of the rows
    played: int = field(default=0, init=False)  # prompts that the run has drawn, over all ranks
    _coming: Iterator[Prompt] = field(default_factory=lambda: iter(()), init=False, repr=False)

    def batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[Prompts]:
        """The batches of updates `after` + 1 to `until`, each read while the one before it is played.

        What comes before is read again and left: `played` prompts, those of `after` batches if not given.
        """
        self.played = self.plan.played_before(after + 1) if played is None else played
        prompts = self._prompts()
        with closing(read_ahead(self._batches_of(prompts, self.played, until - after))) as ahead:
            self._coming = chain(chain.from_iterable(ahead), prompts)  # `prompts`: more than a batch for each update
            for _ in range(after, until):
                yield self.more(range(self.plan.prompts))

    def more(self, places: Sequence[int]) -> Prompts:
        """New prompts for some places of the batch, ascending: this rank's rows of them."""
        plan, first = self.plan, self.played
        read = list(islice(self._coming, len(places)))
        self.played += len(places)
        rows = plan.rows_at(places)
        episodes = [(first + number) * plan.num_generations + again for number, again in rows]
        return prompts_of([read[number] for number, _ in rows], self.columns, episodes)

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """How many prompts of the whole run come before that of each episode."""
        return [episode // self.plan.num_generations for episode in episodes]

    def again(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """The prompts of these numbers, read from the beginning once more. Not while `batches` reads: one reader at a
        time."""
        last = max(numbers, default=-1)
        read = {number: prompt for number, prompt in enumerate(islice(self._prompts(), last + 1)) if number in numbers}
        return prompts_of([read[number] for number in numbers], self.columns, episodes)

    def seen(self, means: Sequence[float]) -> None:
        """The prompts of a stream come in its order, whatever their scores."""

    def notes(self) -> list[str]:
        """What the user should know before the run about how prompts are drawn, one sentence each."""
        return [
            "Prompts are read while they are played: bad rows are met on the way, and a resumed run reads again what "
            "was played."
        ]

    def _prompts(self) -> Iterator[Prompt]:
        """All prompts from the beginning, the streams by turns."""
        feeds = [self._endless(place) for place in range(len(self.streams))]
        return (next(feeds[place]) for place, _ in weighted_round_robin(self.weights))

    def _batches_of(self, prompts: Iterator[Prompt], played: int, count: int) -> Iterator[list[Prompt]]:
        next(islice(prompts, played, played), None)
        for _ in range(count):
            yield list(islice(prompts, self.plan.prompts))

    def _endless(self, place: int) -> Iterator[Prompt]:
        number = 0
        while True:
            yield from self._shuffled(self.streams[place].prompts(number), place, number)
            number += 1

    def _shuffled(self, prompts: Iterator[Prompt], place: int, number: int) -> Iterator[Prompt]:
        """The prompts of a pass, each drawn out of the next few."""
        generator = stream(self.plan.seed, "prompt stream", place, number)
        held: list[Prompt] = []
        for prompt in prompts:
            if len(held) < self.buffer:
                held.append(prompt)
                continue
            drawn = int(torch.randint(len(held), (), generator=generator))
            yield held[drawn]
            held[drawn] = prompt
        yield from (held[drawn] for drawn in torch.randperm(len(held), generator=generator).tolist())
