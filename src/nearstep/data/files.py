"""How local data files become rows, and how a broken line is named."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from nearstep.data.table import Rows, Table, label, row_index
from nearstep.errors import DataError, shorten

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")

PlacedRow: TypeAlias = tuple[str, dict[str, object]]


def read_files(paths: list[Path], name: str, split: str) -> Table:
    """The rows of files of one kind, one file after the other.

    Raises `DataError` naming the file and its line (from 1), or the row's index (from 0) where the format has no lines.
    """
    where = label(name, split)
    suffix = paths[0].suffix.lower()
    if suffix == ".parquet":
        dataset = _read_parquet(paths, where)
        return Table(name, split, dataset, tuple(dataset.column_names), row_index)
    read = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}[suffix]
    placed: list[PlacedRow] = []
    for path in paths:
        file = "" if len(paths) == 1 else f"file {path.name!r}, "
        placed += [(file + position, row) for position, row in read(_read_text(path, where), f"{where}, {file}")]
    rows = [row for _, row in placed]
    return Table(name, split, rows, columns_of(rows), [position for position, _ in placed].__getitem__)


def columns_of(rows: Rows) -> tuple[str, ...]:
    """The columns of any row, in order of appearance."""
    return tuple(dict.fromkeys(column for row in rows for column in row))


def _read_text(path: Path, where: str) -> str:
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return data.decode("utf-8")
    except OSError as error:
        raise DataError(
            f"{where}, file {path.name!r}: cannot be read: {error.strerror}. Check its permissions."
        ) from error
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{where}, file {path.name!r}, line {line}: byte {byte} (0x{data[error.start]:02x}) is no UTF-8. "
            "Save the file as UTF-8."
        ) from error


def _read_jsonl(text: str, where: str) -> Iterator[PlacedRow]:
    # Not splitlines(): JSON texts may hold U+2028 and other characters that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", _object(_parse(line, where, number), f"{where}line {number}")


def _read_json(text: str, where: str) -> Iterator[PlacedRow]:
    items = _parse(text, where, 1) if text.strip() else []
    if isinstance(items, dict) and isinstance(items.get("data"), list):
        items = items["data"]
    if not isinstance(items, list):
        raise DataError(
            f"{where}line 1: expected a list of objects, or an object whose 'data' is one, got {shorten(items)}. "
            "A file with one object per line ends in .jsonl."
        )
    for number, item in enumerate(items):
        yield row_index(number), _object(item, where + row_index(number))


def _parse(text: str, where: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where}line {first_line + error.lineno - 1}, character {error.colno}"
        hint = " A file with one object per line ends in .jsonl." if error.msg == "Extra data" else " Correct the line."
        near = shorten(text[error.pos : error.pos + 60])
        raise DataError(f"{place}: no valid JSON ({error.msg}), at {near}.{hint}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand brackets
        raise DataError(
            f"{where}line {first_line}: JSON that cannot be read ({error}), at {shorten(text[:60])}."
        ) from error


def _object(item: object, place: str) -> dict[str, object]:
    if isinstance(item, dict):
        return item
    raise DataError(f'{place}: expected an object with columns, such as {{"prompt": "…"}}, got {shorten(item)}')


def _read_csv(text: str, where: str) -> Iterator[PlacedRow]:
    records = _csv_records(text, where)
    first_line, header = next(records, (1, []))
    if len(set(header)) < len(header) or "" in header:
        raise DataError(f"{where}line {first_line}: every column needs a name of its own, got {shorten(header)}")
    for line, cells in records:
        if len(cells) != len(header):
            columns = ", ".join(map(repr, header))
            raise DataError(
                f"{where}line {line}: {len(cells)} cells for {len(header)} columns ({columns}): {shorten(cells)}. "
                "Put cells that hold commas, quotes or line ends into quotes."
            )
        yield f"line {line}", dict(zip(header, cells, strict=True))


def _csv_records(text: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Every record with the line on which it starts; blank lines are none."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{where}line {line}: no valid CSV ({error}). Check the quotes of this cell, or save the rows as .jsonl."
        ) from error


def _read_parquet(paths: list[Path], where: str) -> Any:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset

    tables = []
    for path in paths:
        try:
            tables.append(pyarrow.parquet.read_table(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(
                f"{where}, file {path.name!r}: no readable Parquet ({error}). Copy it again, or write it anew."
            ) from error
    try:
        # `default` fills missing columns with None but, unlike reading the files together, never converts a type.
        return Dataset(pyarrow.concat_tables(tables, promote_options="default"))
    except pyarrow.ArrowException as error:
        raise DataError(f"{where}: its Parquet files disagree on the type of a column ({error}).") from error
