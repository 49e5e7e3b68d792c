"""Which preference pairs a data set gives, for the training of reward models."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from nearstep.common.errors import DataError
from nearstep.data.formats.format import Format, PreferencePair
from nearstep.data.formats.recognise import HEAD_ROWS, contradicted_hint, format_named, recognise
from nearstep.data.load import load_rows, table_of
from nearstep.data.row_errors import BadRow, BadValueError, bad_rows, counted
from nearstep.data.table import Table, with_columns
from nearstep.data.tokenise import keywords_of

__all__ = ["PairSet", "PreferencePair", "load_pairs", "pairs_of"]


@dataclass(frozen=True)
class PairSet:
    """All usable pairs of one split of a data set, in its order; `bad` are the rows that were left out."""

    label: str
    format: str
    rows: int
    pairs: tuple[PreferencePair, ...]
    bad: tuple[BadRow, ...] = ()
    hints: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pairs)

    def sentences(self) -> list[str]:
        """What was read, for the introduction of a run."""
        said = [f"Preference pairs from {self.label}: {len(self)} of {self.rows} rows, format {self.format}."]
        if self.bad:
            first = self.bad[0]
            said.append(
                f"{len(self.bad)} rows were left out: {counted(row.row_error for row in self.bad)}. "
                f"The first is {first.place}{first.said}."
            )
        return [*said, *self.hints]


def load_pairs(
    source: object,
    *,
    split: str = "train",
    config: str | None = None,
    columns: Mapping[str, str] | None = None,
    dataset_format: str | None = None,
    on_bad_row: Literal["raise", "drop"] = "raise",
) -> PairSet:
    """The pairs of a file, a folder, a hub name, or of rows given as an object.

    `columns` goes from our names to the data set's; the format is recognised where it is not named. Raises
    `DataError` naming data set, split, row, column and value where rows are bad and not dropped, and where the data
    set holds no preferences; `ConfigError` for an unknown format.
    """
    if isinstance(source, str):
        table = load_rows(source, split=split, config=config, on_bad_row=on_bad_row)
    else:
        table = table_of(source, "train_dataset", split)
    return pairs_of(with_columns(table, columns or {}), dataset_format=dataset_format, on_bad_row=on_bad_row)


def pairs_of(
    table: Table, *, dataset_format: str | None = None, on_bad_row: Literal["raise", "drop"] = "raise"
) -> PairSet:
    """The pairs of a table; see `load_pairs`."""
    found = _format(table, dataset_format)
    convert = found.pairs
    if convert is None:
        raise DataError(
            f"{table.label}: its format, {found.name}, holds no preferences. Give 'chosen' and 'rejected', or name the "
            "columns that hold them by the setting columns."
        )
    pairs: list[PreferencePair] = []
    bad: list[BadRow] = [*table.broken]
    gathered = found.pair_rows(table)
    for number, row in enumerate(gathered.rows):
        try:
            made, kwargs = convert(row), keywords_of(row)
        except BadValueError as error:
            bad.append(gathered.bad_row(number, error))
            continue
        place = f"{table.label}, {gathered.position(number)}"
        pairs += [replace(pair, place=place, template_kwargs=kwargs) for pair in made]
    rows = len(gathered) + len(table.broken)
    if bad and (on_bad_row == "raise" or not pairs):
        raise bad_rows(table.label, bad, rows)
    hints = tuple(contradicted_hint(table.name, found))
    return PairSet(table.label, found.name, rows, tuple(pairs), tuple(bad), hints)


def _format(table: Table, name: str | None) -> Format:
    if name is not None:
        return format_named(name)
    found = recognise(table.columns, list(islice(table.rows, HEAD_ROWS)))
    if found is None:
        raise DataError(
            f"{table.label}: no known format has its columns, {list(table.columns)}. Name those that hold the pairs: "
            "--columns prompt=… chosen=… rejected=…"
        )
    return found
