"""How prepared prompts are written: an Arrow file that `datasets.load_from_disk` opens, whole or not at all.

A column has the type of its values where they have one, and is JSON where they have none or are nested, which
`datasets` reads back as the values they were: a type for nested values would add the keys of one row to all others.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nearstep.data.manifest import Lengths, Shard


def column_of(values: Sequence[object]) -> Any:
    """Values as an Arrow array.

    Raises UnicodeEncodeError for text that is none, TypeError for values that neither Arrow nor JSON has, and
    OverflowError for numbers beyond 64 bits.
    """
    import pyarrow  # type: ignore[import-untyped]

    nested = any(isinstance(value, list | tuple | Mapping) for value in values)
    ways = (_as_json, pyarrow.array) if nested else (pyarrow.array, _as_json)
    try:
        return ways[0](values)
    except (TypeError, pyarrow.ArrowException):
        return ways[1](values)


def _as_json(values: Sequence[object]) -> Any:
    """Values as a column of JSON."""
    import pyarrow

    if any(map(_is_too_large, values)):
        raise OverflowError("a number beyond 64 bits")
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(texts, pyarrow.string()))


def _is_too_large(value: object) -> bool:
    if isinstance(value, int):
        return not -(2**63) <= value < 2**63
    if isinstance(value, Mapping):
        return any(map(_is_too_large, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_too_large, value))


def write_arrow(tables: Iterable[Any], path: Path) -> None:
    """Write tables one after the other into one file: each with its own types first, then all with those of all."""
    import pyarrow

    first, schema = path.with_suffix(".first"), pyarrow.schema([])
    with pyarrow.OSFile(str(first), "wb") as file:
        for table in tables:
            schema = _merged(schema, table.schema)
            with pyarrow.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table)
    with pyarrow.memory_map(str(first)) as file, pyarrow.ipc.new_stream(str(path), schema) as writer:
        while file.tell() < file.size():
            writer.write_table(_adapted(pyarrow.ipc.open_stream(file).read_all(), schema))
    first.unlink()


def _merged(first: Any, second: Any) -> Any:
    """The columns of both, each of the type of its values, or JSON where they differ in type."""
    import pyarrow

    kinds = {field.name: field.type for field in first}
    for field in second:
        known = kinds.get(field.name, pyarrow.null())
        if known == pyarrow.null():
            kinds[field.name] = field.type
        elif field.type not in (known, pyarrow.null()):
            kinds[field.name] = pyarrow.json_()
    return pyarrow.schema(list(kinds.items()))


def _adapted(table: Any, schema: Any) -> Any:
    """The table with the columns and types of a schema that holds its values."""
    import pyarrow

    columns = []
    for field in schema:
        column = table.column(field.name) if field.name in table.column_names else None
        if column is None or column.type == pyarrow.null():
            columns.append(pyarrow.nulls(len(table), field.type))
        else:
            columns.append(column if column.type == field.type else _as_json(column.to_pylist()))
    return pyarrow.Table.from_arrays(columns, schema=schema)


def described(path: Path) -> tuple[Shard, Lengths]:
    """What is known of an Arrow file; written beside it is what `datasets.load_from_disk` wants to find."""
    import pyarrow.compute  # type: ignore[import-untyped]
    from datasets import Dataset

    dataset = Dataset.from_file(str(path))
    dataset.info.write_to_directory(str(path.parent))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    state: dict[str, object] = {
        "_data_files": [{"filename": path.name}],
        "_fingerprint": digest[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": "train",
    }
    (path.parent / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    lengths = pyarrow.compute.list_value_length(dataset.data.column("input_ids")).to_numpy()
    return Shard(path.name, len(dataset), path.stat().st_size, digest), Lengths.of(lengths)
