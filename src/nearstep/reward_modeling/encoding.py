"""How texts become the rows that a reward model learns from, and what happens to those it cannot read whole."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from nearstep.common.errors import DataError
from nearstep.data.pairs import PairSet, PreferencePair
from nearstep.data.row_errors import BadRow, BadValueError, RowError, bad_rows
from nearstep.reward_modeling.examples import Comparison, PreferenceLabel
from nearstep.rewards.batch import Completion
from nearstep.rewards.reading import EpisodeReader, UnreadableError
from nearstep.types import PromptInput


@dataclass(frozen=True)
class TextEncoder:
    """Prompt and answer as ids, the way in which the finished model will read them in PPO; never cut."""

    reader: EpisodeReader
    vocab_size: int  # of the model's embedding
    max_length: int | None  # in tokens

    def of_row(self, template_kwargs: Mapping[str, object]) -> "TextEncoder":
        """The same for a row that has keywords for the chat template."""
        return replace(self, reader=self.reader.of_row(template_kwargs))

    def encode(self, prompt: PromptInput, answer: Completion, column: str, *, finished: bool = True) -> list[int]:
        """The ids of a text; raises BadValueError for one that is too long or cannot be read."""
        try:
            ids = self.reader.read(prompt, answer, finished=finished)
        except UnreadableError as error:
            remedy = "Change the messages, or tokenizer.chat_template, or give texts."
            raise BadValueError(RowError.TEMPLATE, column, answer, f"for this model {error}", remedy) from error
        self.check(ids, answer, column)
        return ids

    def check(self, ids: list[int], answer: Completion, column: str) -> None:
        """Raise BadValueError for ids that the model cannot read, or not whole."""
        if not ids:
            raise BadValueError(RowError.EMPTY, column, answer, "there is no token", "Take empty texts out.")
        if max(ids) >= self.vocab_size:
            problem = f"id {max(ids)} lies outside the model's vocabulary of {self.vocab_size}"
            raise BadValueError(RowError.VOCABULARY, column, answer, problem, "Use the tokenizer of the model.")
        if self.max_length is not None and len(ids) > self.max_length:
            problem = f"{len(ids)} tokens with its prompt, and at most {self.max_length} are allowed"
            remedy = "Set on_long_text to drop, or raise max_length as far as the model's positions allow."
            raise BadValueError(RowError.LONG, column, answer, problem, remedy)


@dataclass
class LeftOutRows:
    """Rows without anything to learn. Each is an error, or is left out and counted, as `on_bad_row` says."""

    on_long_text: Literal["error", "drop"]
    on_bad_row: Literal["raise", "drop"] = "raise"
    too_long: int = 0
    bad: list[BadRow] = field(default_factory=list)

    def add(self, error: BadValueError, place: str) -> None:
        """Take note of a row."""
        if error.row_error is RowError.LONG and self.on_long_text == "drop":
            self.too_long += 1
        else:
            self.bad.append(BadRow.of(error, place))

    def settle(self, label: str, rows: int, kept: int) -> list[str]:
        """A sentence for each kind of rows left out. Raises DataError for bad rows, or where no row is left."""
        bad = [replace(row, place=row.place.removeprefix(f"{label}, ")) for row in self.bad]
        if bad and self.on_bad_row == "raise":
            raise bad_rows(label, bad, rows)
        if not kept and self.too_long:
            raise DataError(f"{label}: all {rows} rows have texts that are too long. Raise max_length.")
        if not kept:
            raise bad_rows(label, bad, rows)
        notes = []
        if self.too_long:
            notes.append(f"{self.too_long} of {rows} rows were left out: a text is longer than max_length.")
        if bad:
            notes.append(f"{len(bad)} of {rows} rows were left out. The first is {bad[0].place}{bad[0].said}.")
        return notes


@dataclass(frozen=True)
class Compared:
    """Comparisons, for each the prompt that its rows answer, and notes on how they were made."""

    comparisons: list[Comparison]
    prompts: list[str]
    sentences: list[str]

    def __add__(self, other: "Compared") -> "Compared":
        return Compared(
            self.comparisons + other.comparisons, self.prompts + other.prompts, self.sentences + other.sentences
        )


def compare(found: PairSet, encoder: TextEncoder, left_out_rows: LeftOutRows) -> Compared:
    """Every usable pair of a data set as a comparison. Raises DataError naming bad rows."""
    comparisons, prompts = [], []
    for pair in found.pairs:
        try:
            comparisons.append(encode_pair(pair, encoder))
        except BadValueError as error:
            left_out_rows.add(error, pair.place)
            continue
        prompts.append(repr(pair.prompt))
    left_out = left_out_rows.settle(found.label, len(found), len(comparisons))
    return Compared(comparisons, prompts, [*found.sentences(), *left_out, *_of_labels(found.pairs)])


def encode_pair(pair: PreferencePair, encoder: TextEncoder) -> Comparison:
    """The two rows of a pair, that which is more often better first; raises BadValueError."""
    rows = (
        encoder.of_row(pair.template_kwargs).encode(pair.prompt, pair.chosen, "chosen"),
        encoder.of_row(pair.template_kwargs).encode(pair.prompt, pair.rejected, "rejected"),
    )
    if rows[0] == rows[1]:
        problem = "chosen and rejected are the same tokens"
        raise BadValueError(RowError.ALIKE, "chosen", pair.chosen, problem, "Take out pairs without a difference.")
    if pair.preference < 0.5:
        return Comparison(rows[::-1], (PreferenceLabel(0, 1, preference=1 - pair.preference),))
    return Comparison(rows, (PreferenceLabel(0, 1, pair.margin or 0.0, pair.preference),))


def _of_labels(pairs: Sequence[PreferencePair]) -> list[str]:
    """Notes on ties and margins of the pairs."""
    margins = [pair.margin for pair in pairs if pair.margin is not None]
    ties = sum(pair.preference == 0.5 for pair in pairs)
    notes = [f"{ties} of {len(pairs)} pairs are ties."] if ties else []
    if margins:
        notes.append(
            f"{len(margins)} of {len(pairs)} pairs have a margin, {sum(margins) / len(margins):.3g} in the mean."
        )
    return notes
