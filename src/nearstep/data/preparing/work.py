"""What becomes of one piece of a data set: rows read, turned into prompts, tokenised, and laid out as Arrow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nearstep.data.files.chunks import Chunk
from nearstep.data.files.read import columns_of
from nearstep.data.formats.trees import GATHERED
from nearstep.data.preparing.arrow import column_of
from nearstep.data.reader import Counts, PromptReader, ReadRow
from nearstep.data.row_errors import BadRow, BadValueError, RowError
from nearstep.data.stream import renamed_entries

# What Arrow raises for a value that no file holds, and what is said of it.
UNSTORABLE: dict[type[Exception], tuple[RowError, str]] = {
    UnicodeEncodeError: (RowError.TEXT, "it has half a surrogate pair"),
    OverflowError: (RowError.NUMBER, "it holds a number beyond 64 bits"),
    TypeError: (RowError.TYPE, "it is of a kind that no file holds"),
}


@dataclass(frozen=True)
class PreparedChunk:
    """What became of a piece: its prompts and columns as a `pyarrow.Table`, its counts, and its bad rows."""

    table: Any
    counts: Counts
    bad: Sequence[BadRow]


@dataclass(frozen=True)
class ChunkPreparer:
    """What is done to every piece; each process gets it once."""

    reader: PromptReader
    names: Mapping[str, str]  # columns: ours → theirs

    def __call__(self, chunk: Chunk) -> PreparedChunk:
        """Prepare one piece. Bad rows are handed back, not raised, so that they are told in the order of the data."""
        read = list(self.reader.read(renamed_entries(chunk, self.names), self.names))
        try:
            table = self._table(read)
        except tuple(UNSTORABLE):
            # Rare, so values are looked at one by one only now; an error of another kind comes back the second time.
            unstorable = self._unstorable(read)
            read = [unstorable.get(one.place, one) for one in read]
            table = self._table(read)
        counts = Counts()
        for one in read:
            counts.add(one)
        bad = [one for one in read if isinstance(one, BadRow) and not self.reader.drops(one)]
        return PreparedChunk(table, counts, bad)

    def _table(self, read: Sequence[ReadRow | BadRow]) -> Any:
        import pyarrow  # type: ignore[import-untyped]

        kept = [one for one in read if isinstance(one, ReadRow)]
        ids = pyarrow.array([one.prompt.ids for one in kept], type=pyarrow.list_(pyarrow.int32()))
        columns = {name: column_of(values) for name, values in self._columns(kept).items()}
        return pyarrow.table({"input_ids": ids, **columns})

    def _columns(self, kept: Sequence[ReadRow]) -> dict[str, list[object]]:
        """What is written beside the token ids: the prompt as people see it, columns for rewards, the reference."""
        layout = self.reader.layout
        hidden = GATHERED if layout.format is not None and layout.format.gathers else ()
        found = [name for name in columns_of([one.row for one in kept]) if name not in hidden]
        passed = [name for name in layout.passed_on(found) if name in found]
        columns: dict[str, list[object]] = {name: [one.row.get(name) for one in kept] for name in passed}
        if layout.format is None:
            return columns
        if layout.gives_reference(found):
            columns["reference"] = [one.prompt.reference for one in kept]
        return {"prompt": [one.prompt.shown for one in kept], **columns}

    def _unstorable(self, read: Sequence[ReadRow | BadRow]) -> dict[str, BadRow]:
        """The rows that cannot be written down, by place, and what is wrong with each."""
        kept = [one for one in read if isinstance(one, ReadRow)]
        bad: dict[str, BadRow] = {}
        for name, values in self._columns(kept).items():
            for one, value in zip(kept, values, strict=True):
                try:
                    column_of([[value]])
                except tuple(UNSTORABLE) as error:
                    row_error, problem = UNSTORABLE[type(error)]
                    remedy = "Take the column out, or turn it into clean text."
                    said = BadValueError(row_error, self.names.get(name, name), value, problem, remedy)
                    bad.setdefault(one.place, BadRow.of(said, one.place))
        return bad
