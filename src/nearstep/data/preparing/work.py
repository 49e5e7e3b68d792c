"""What becomes of one piece of a data set: rows read, turned into prompts, tokenised, and laid out as Arrow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from nearstep.data.files.chunks import Chunk, Entry
from nearstep.data.formats.trees import GATHERED
from nearstep.data.preparing.columns import check_storable, column_of, ids_column
from nearstep.data.preparing.plan import Plan, reader_of
from nearstep.data.reader import BATCH_ROWS, ReadPrompt
from nearstep.data.row_errors import BadRow, BadValueError, RowError
from nearstep.data.stream import renamed_entries


@dataclass(frozen=True)
class SomeOf:
    """A few rows of a chunk."""

    chunk: Chunk
    chosen: frozenset[int]  # numbers within the chunk

    def __len__(self) -> int:
        return len(self.chosen)

    def entries(self) -> Iterator[Entry]:
        """The chosen rows in order, each with its place."""
        return (entry for number, entry in enumerate(self.chunk.entries()) if number in self.chosen)


@dataclass(frozen=True)
class Task:
    """A piece of a data set, and what shall be done to its rows."""

    plan: Plan
    chunk: Chunk


@dataclass(frozen=True)
class Outcome:
    """What became of a piece: its prompts as an Arrow stream, and what there is to count."""

    rows: int
    arrow: bytes
    lengths: tuple[int, ...]  # tokens of each prompt
    bad: tuple[BadRow, ...]
    too_long: int = 0
    cut: int = 0
    shortened: int = 0
    unpadded: int = 0
    eos_taken_off: int = 0
    chats: int = 0


@dataclass
class _Kept:
    """The rows that are written, and the prompts that were made of them."""

    rows: list[Mapping[str, object]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    prompts: list[ReadPrompt] = field(default_factory=list)

    def without(self, numbers: set[int]) -> "_Kept":
        """All but some."""
        left = [number for number in range(len(self.rows)) if number not in numbers]
        return _Kept(
            [self.rows[n] for n in left], [self.places[n] for n in left], [self.prompts[n] for n in left]
        )  # fmt: skip


def carry_out(task: Task) -> Outcome:
    """Prepare one piece. Bad rows are handed back, not raised, so that they can be told in the order of the data."""
    plan = task.plan
    entries = list(renamed_entries(task.chunk, dict(plan.names)))
    kept, bad, too_long = _read(plan, entries)
    unstorable: list[BadRow] = []
    try:
        arrow = _arrow(plan, kept)
    except (UnicodeEncodeError, TypeError, OverflowError):
        # Rare, so values are looked at one by one only now; an error of another kind comes back the second time.
        kept, unstorable = _storable(plan, kept)
        arrow = _arrow(plan, kept)
    return Outcome(
        rows=len(entries),
        arrow=arrow,
        lengths=tuple(len(prompt.ids) for prompt in kept.prompts),
        bad=(*bad, *unstorable),
        too_long=too_long,
        cut=sum(prompt.cut for prompt in kept.prompts),
        shortened=sum(prompt.shorter is not None for prompt in kept.prompts),
        unpadded=sum(prompt.had_padding for prompt in kept.prompts),
        eos_taken_off=sum(prompt.had_eos for prompt in kept.prompts),
        chats=sum(isinstance(prompt.shown, list) for prompt in kept.prompts),
    )


def _read(plan: Plan, entries: Sequence[Entry]) -> tuple[_Kept, list[BadRow], int]:
    """The rows that are prompts, the bad ones, and how many are too long."""
    reader = reader_of(plan)
    kept, too_long = _Kept(), 0
    bad = [entry for entry in entries if isinstance(entry, BadRow)]
    good = [entry for entry in entries if not isinstance(entry, BadRow)]
    for start in range(0, len(good), BATCH_ROWS):
        batch = good[start : start + BATCH_ROWS]
        for (place, row), prompt in zip(batch, reader.read([row for _, row in batch]), strict=True):
            if not isinstance(prompt, BadValueError):
                kept.rows.append(row)
                kept.places.append(place)
                kept.prompts.append(prompt)
            elif prompt.row_error is RowError.LONG and plan.on_long_prompt == "drop":
                too_long += 1
            else:
                bad.append(_named(plan, prompt, place))
    return kept, bad, too_long


def _storable(plan: Plan, kept: _Kept) -> tuple[_Kept, list[BadRow]]:
    """The rows that can be written down, and what is wrong with the others."""
    bad: dict[int, BadRow] = {}
    for name, values in _columns(plan, kept).items():
        for number, value in enumerate(values):
            try:
                check_storable(name, value)
            except BadValueError as error:
                bad.setdefault(number, _named(plan, error, kept.places[number]))
    return kept.without(set(bad)), list(bad.values())


def _named(plan: Plan, error: BadValueError, place: str) -> BadRow:
    error.column = dict(plan.names).get(error.column, error.column)
    return BadRow.of(error, place)


def _columns(plan: Plan, kept: _Kept) -> dict[str, list[object]]:
    """What is written beside the token ids: the prompt as people see it, the columns for rewards, the reference."""
    shown = plan.layout.format
    found = list(dict.fromkeys(column for row in kept.rows for column in row))
    hidden = GATHERED if shown is not None and shown.gathers else ()
    passed = [name for name in plan.layout.passed_on(found) if name in found and name not in hidden]
    columns: dict[str, list[object]] = {name: [row.get(name) for row in kept.rows] for name in passed}
    if shown is None:
        return columns
    if plan.layout.gives_reference(found):
        columns["reference"] = [prompt.reference for prompt in kept.prompts]
    return {"prompt": [prompt.shown for prompt in kept.prompts], **columns}


def _arrow(plan: Plan, kept: _Kept) -> bytes:
    """The prompts and columns of the kept rows as an Arrow stream."""
    import pyarrow  # type: ignore[import-untyped]

    columns = {name: column_of(values) for name, values in _columns(plan, kept).items()}
    table = pyarrow.table({"input_ids": ids_column([prompt.ids for prompt in kept.prompts]), **columns})
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
