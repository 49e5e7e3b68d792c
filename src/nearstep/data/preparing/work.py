"""What becomes of one piece of a data set: rows read, turned into prompts, tokenised, and laid out as Arrow."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nearstep.data.files.chunks import Chunk
from nearstep.data.formats.trees import GATHERED
from nearstep.data.preparing.arrow import column_of
from nearstep.data.preparing.plan import Plan, reader_of
from nearstep.data.reader import BATCH_ROWS, ReadPrompt
from nearstep.data.row_errors import BadRow, BadValueError, RowError
from nearstep.data.stream import renamed_entries

# What Arrow raises for a value that no file holds, and what is said of it.
UNSTORABLE: dict[type[Exception], tuple[RowError, str]] = {
    UnicodeEncodeError: (RowError.TEXT, "it has half a surrogate pair"),
    OverflowError: (RowError.NUMBER, "it holds a number beyond 64 bits"),
    TypeError: (RowError.TYPE, "it is of a kind that no file holds"),
}


@dataclass(frozen=True)
class Counts:
    """What there is to count in a piece, and in all of them."""

    read: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # tokens of each prompt
    row_errors: Counter[RowError] = field(default_factory=Counter)
    cut: int = 0
    shortened: int = 0
    unpadded: int = 0
    eos_taken_off: int = 0
    chats: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        names = [one.name for one in dataclasses.fields(self)]
        return Counts(**{name: vars(self)[name] + vars(other)[name] for name in names})


@dataclass(frozen=True)
class Outcome:
    """What became of a piece: its prompts and columns as a `pyarrow.Table`, its counts, and its bad rows."""

    table: Any
    counts: Counts
    bad: Sequence[BadRow]


@dataclass(frozen=True)
class _Kept:
    """A row that is written, and the prompt that was made of it."""

    place: str
    row: Mapping[str, object]
    prompt: ReadPrompt


def carry_out(plan: Plan, chunk: Chunk) -> Outcome:
    """Prepare one piece. Bad rows are handed back, not raised, so that they can be told in the order of the data."""
    reader = reader_of(plan)
    entries = list(renamed_entries(chunk, dict(plan.request.columns)))
    bad = [entry for entry in entries if isinstance(entry, BadRow)]
    good = [entry for entry in entries if not isinstance(entry, BadRow)]
    kept, too_long = [], 0
    for start in range(0, len(good), BATCH_ROWS):
        batch = good[start : start + BATCH_ROWS]
        for (place, row), prompt in zip(batch, reader.read([row for _, row in batch]), strict=True):
            if not isinstance(prompt, BadValueError):
                kept.append(_Kept(place, row, prompt))
            elif prompt.row_error is RowError.LONG and plan.request.on_long_prompt == "drop":
                too_long += 1
            else:
                bad.append(_named(plan, prompt, place))
    try:
        table = _table(plan, kept)
    except tuple(UNSTORABLE):
        # Rare, so values are looked at one by one only now; an error of another kind comes back the second time.
        kept, unstorable = _storable(plan, kept)
        bad += unstorable
        table = _table(plan, kept)
    prompts = [one.prompt for one in kept]
    counts = Counts(
        read=len(entries),
        lengths=Counter(len(prompt.ids) for prompt in prompts),
        row_errors=Counter({RowError.LONG: too_long}) + Counter(row.row_error for row in bad),
        cut=sum(prompt.cut for prompt in prompts),
        shortened=sum(prompt.shorter is not None for prompt in prompts),
        unpadded=sum(prompt.had_padding for prompt in prompts),
        eos_taken_off=sum(prompt.had_eos for prompt in prompts),
        chats=sum(isinstance(prompt.shown, list) for prompt in prompts),
    )
    return Outcome(table, counts, bad)


def _table(plan: Plan, kept: Sequence[_Kept]) -> Any:
    import pyarrow  # type: ignore[import-untyped]

    ids = pyarrow.array([one.prompt.ids for one in kept], type=pyarrow.list_(pyarrow.int32()))
    columns = {name: column_of(values) for name, values in _columns(plan, kept).items()}
    return pyarrow.table({"input_ids": ids, **columns})


def _columns(plan: Plan, kept: Sequence[_Kept]) -> dict[str, list[object]]:
    """What is written beside the token ids: the prompt as people see it, the columns for rewards, the reference."""
    shown = plan.layout.format
    found = list(dict.fromkeys(column for one in kept for column in one.row))
    hidden = GATHERED if shown is not None and shown.gathers else ()
    passed = [name for name in plan.layout.passed_on(found) if name in found and name not in hidden]
    columns: dict[str, list[object]] = {name: [one.row.get(name) for one in kept] for name in passed}
    if shown is None:
        return columns
    if plan.layout.gives_reference(found):
        columns["reference"] = [one.prompt.reference for one in kept]
    return {"prompt": [one.prompt.shown for one in kept], **columns}


def _storable(plan: Plan, kept: Sequence[_Kept]) -> tuple[list[_Kept], list[BadRow]]:
    """The rows that can be written down, and what is wrong with the others."""
    bad: dict[int, BadRow] = {}
    for name, values in _columns(plan, kept).items():
        for number, value in enumerate(values):
            try:
                column_of([[value]])
            except tuple(UNSTORABLE) as error:
                row_error, problem = UNSTORABLE[type(error)]
                said = BadValueError(
                    row_error, name, value, problem, "Take the column out, or turn it into clean text."
                )
                bad.setdefault(number, _named(plan, said, kept[number].place))
    return [one for number, one in enumerate(kept) if number not in bad], list(bad.values())


def _named(plan: Plan, error: BadValueError, place: str) -> BadRow:
    error.column = dict(plan.request.columns).get(error.column, error.column)
    return BadRow.of(error, place)
