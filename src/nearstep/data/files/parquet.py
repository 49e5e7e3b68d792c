"""How .parquet files are read: whole where rows are asked for by number, batch by batch where they stream."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from nearstep.data.files.chunks import CHUNK_ROWS, DatasetChunk
from nearstep.data.table import row_index
from nearstep.errors import DataError


def parquet_rows(paths: Sequence[Path], label: str) -> tuple[Any, Callable[[int], str]]:
    """All rows as one `datasets.Dataset`, and the place of each. Raises `DataError` naming the file."""
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset

    tables = []
    for path in paths:
        try:
            tables.append(pyarrow.parquet.read_table(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(path, label, error) from error
    try:
        # `default` fills missing columns with None but, unlike reading the files together, never converts a type.
        dataset = Dataset(pyarrow.concat_tables(tables, promote_options="default"))
    except pyarrow.ArrowException as error:
        raise _disagreeing(label, error) from error
    return dataset, _places(paths, [len(table) for table in tables])


def parquet_chunks(paths: Sequence[Path], label: str) -> Iterator[DatasetChunk]:
    """The rows of files, batch by batch. Raises `DataError` naming the file."""
    import pyarrow.parquet
    from datasets import Dataset

    schema = _schema(paths, label)
    for path in paths:
        file, first = file_prefix(path, paths), 0
        try:
            with pyarrow.parquet.ParquetFile(path) as source:
                for batch in source.iter_batches(CHUNK_ROWS):
                    parts = [schema.empty_table(), pyarrow.Table.from_batches([batch])]
                    yield DatasetChunk(file, first, Dataset(pyarrow.concat_tables(parts, promote_options="default")))
                    first += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(path, label, error, f" after {file}{row_index(first)}" if first else "") from error


def file_prefix(path: Path, paths: Sequence[Path]) -> str:
    """What comes before the place of a row where there are several files."""
    return f"file {path.name!r}, " if len(paths) > 1 else ""


def _schema(paths: Sequence[Path], label: str) -> Any:
    """The columns of all files together."""
    import pyarrow.parquet

    schemas = []
    for path in paths:
        try:
            schemas.append(pyarrow.parquet.read_schema(path))
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(path, label, error) from error
    try:
        return pyarrow.unify_schemas(schemas, promote_options="default")
    except pyarrow.ArrowException as error:
        raise _disagreeing(label, error) from error


def _places(paths: Sequence[Path], lengths: Sequence[int]) -> Callable[[int], str]:
    ends = list(accumulate(lengths))

    def place(row: int) -> str:
        file = bisect_right(ends, row)
        return file_prefix(paths[file], paths) + row_index(row - (ends[file] - lengths[file]))

    return place


def _unreadable(path: Path, label: str, error: Exception, place: str = "") -> DataError:
    return DataError(
        f"{label}, file {path.name!r}: no readable Parquet{place} ({error}). Copy it again, or write it anew."
    )


def _disagreeing(label: str, error: Exception) -> DataError:
    return DataError(f"{label}: its Parquet files disagree on the type of a column ({error}).")
