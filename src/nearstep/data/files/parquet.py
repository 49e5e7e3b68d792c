"""How .parquet files are read: whole where rows are asked for by number, batch by batch where they stream."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

from nearstep.common.errors import DataError
from nearstep.data.files.chunks import CHUNK_ROWS, DatasetChunk
from nearstep.data.table import row_index


def parquet_rows(paths: Sequence[Path], label: str) -> tuple[Any, Callable[[int], str]]:
    """All rows as one `datasets.Dataset`, and the place of each. Raises `DataError` naming the file."""
    import pyarrow.parquet  # type: ignore[import-untyped]
    from datasets import Dataset

    tables = [_schema(paths, label).empty_table()]
    for path in paths:
        with _readable(path, label):
            tables.append(pyarrow.parquet.read_table(path))
    ends = list(accumulate(map(len, tables)))

    def place(row: int) -> str:
        file = bisect_right(ends, row)
        return file_prefix(paths[file - 1], paths) + row_index(row - ends[file - 1])

    # `default` fills missing columns with None but, unlike reading the files together, never converts a type.
    return Dataset(pyarrow.concat_tables(tables, promote_options="default")), place


def parquet_chunks(paths: Sequence[Path], label: str) -> Iterator[DatasetChunk]:
    """The rows of files, batch by batch. Raises `DataError` naming the file."""
    import pyarrow.parquet
    from datasets import Dataset

    empty = _schema(paths, label).empty_table()
    for path in paths:
        file, first = file_prefix(path, paths), 0
        with _readable(path, label), pyarrow.parquet.ParquetFile(path) as source:
            for batch in source.iter_batches(CHUNK_ROWS):
                tables = [empty, pyarrow.Table.from_batches([batch])]
                yield DatasetChunk(file, first, Dataset(pyarrow.concat_tables(tables, promote_options="default")))
                first += len(batch)


def file_prefix(path: Path, paths: Sequence[Path]) -> str:
    """What comes before the place of a row where there are several files."""
    return f"file {path.name!r}, " if len(paths) > 1 else ""


def _schema(paths: Sequence[Path], label: str) -> Any:
    """The columns of all files together."""
    import pyarrow.parquet

    schemas = []
    for path in paths:
        with _readable(path, label):
            schemas.append(pyarrow.parquet.read_schema(path))
    try:
        return pyarrow.unify_schemas(schemas, promote_options="default")
    except pyarrow.ArrowException as error:
        raise DataError(f"{label}: its Parquet files disagree on the type of a column ({error}).") from error


@contextmanager
def _readable(path: Path, label: str) -> Iterator[None]:
    """Turn what the library says of a broken file into a `DataError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        where, said = f"{label}, file {path.name!r}", str(error).rstrip(".")
        if isinstance(error, OSError) and error.errno is not None:
            raise DataError(f"{where}: cannot be read: {error.strerror}. Check its permissions.") from error
        damage = next(_broken_columns(path), said)
        raise DataError(f"{where}: no readable Parquet: {damage}. Copy it again, or write it anew.") from error


def _broken_columns(path: Path) -> Iterator[str]:
    """The parts of a file that cannot be read, each a column of a row group; none where its footer is broken."""
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError):
        return
    first = 0
    for number in range(source.num_row_groups):
        group = source.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            name, last = column.path_in_schema, first + group.num_rows - 1
            try:
                source.read_row_group(number, columns=[name])
            except (pyarrow.ArrowException, OSError) as error:
                start = column.dictionary_page_offset or column.data_page_offset
                place = f"bytes {start + 1:,} to {start + column.total_compressed_size:,}, column {name!r}"
                yield f"{place} of row index {first} to {last} ({error})"
        first += group.num_rows
