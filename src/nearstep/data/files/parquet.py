"""How .parquet files are read: whole where rows are asked for by number, batch by batch where they stream."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from nearstep.common.errors import DataError
from nearstep.data.files.chunks import CHUNK_ROWS, DatasetChunk
from nearstep.data.table import row_index

MARK = b"PAR1"  # how a file begins and ends


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
            raise _unreadable(path, label, error) from error


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


def _unreadable(path: Path, label: str, error: Exception) -> DataError:
    if isinstance(error, OSError) and error.errno is not None:
        return DataError(f"{label}, file {path.name!r}: cannot be read: {error.strerror}. Check its permissions.")
    said = str(error).rstrip(".")
    return DataError(
        f"{label}, file {path.name!r}: no readable Parquet: {_damage(path)} ({said}). Copy it again, or write it anew."
    )


def _damage(path: Path) -> str:
    """At which bytes a file is broken, as far as its marks and its footer tell."""
    import pyarrow.parquet

    size = path.stat().st_size
    with path.open("rb") as file:
        begins = file.read(len(MARK))
        file.seek(max(0, size - len(MARK)))
        ends = file.read()
    if begins != MARK:
        return f"byte 1: it does not begin with {MARK.decode()}"
    if ends != MARK or size <= 2 * len(MARK):
        return f"it ends at byte {size:,} without its closing {MARK.decode()}, as if cut"
    try:
        source = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError):
        return f"its footer, which ends at byte {size:,}, is broken"
    with source:
        return next(_broken_columns(source), "each of its parts can be read, all of them together cannot")


def _broken_columns(source: Any) -> Iterator[str]:
    """The parts of a file that cannot be read, each a column of a row group."""
    import pyarrow

    first = 0
    for number in range(source.num_row_groups):
        group = source.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            name, last = column.path_in_schema, first + group.num_rows - 1
            try:
                source.read_row_group(number, columns=[name])
            except (pyarrow.ArrowException, OSError):
                start = column.dictionary_page_offset or column.data_page_offset
                end = start + column.total_compressed_size
                yield f"bytes {start + 1:,} to {end:,}, column {name!r} of row index {first} to {last}"
        first += group.num_rows


def _disagreeing(label: str, error: Exception) -> DataError:
    return DataError(f"{label}: its Parquet files disagree on the type of a column ({error}).")
