"""How Python values become Arrow columns, and how columns of many pieces become one type.

A column whose values have no common type is stored as JSON, which `datasets` reads back as the values they were.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nearstep.data.row_errors import BadValueError, RowError


def column_of(values: Sequence[object]) -> Any:
    """Values as an Arrow array, of their own type where they have one, else as JSON.

    Raises UnicodeEncodeError for text that is none, TypeError for values that neither Arrow nor JSON has, and
    OverflowError for numbers beyond 64 bits.
    """
    import pyarrow  # type: ignore[import-untyped]

    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, pyarrow.ArrowNotImplementedError):
        return as_json(values)


def ids_column(rows: Sequence[Sequence[int]]) -> Any:
    """Token ids as a column of lists of 32-bit numbers."""
    import pyarrow

    return pyarrow.array(rows, type=pyarrow.list_(pyarrow.int32()))


def as_json(values: Sequence[object]) -> Any:
    """Values as a column of JSON."""
    import pyarrow

    if any(map(_is_too_large, values)):
        raise OverflowError("a number beyond 64 bits")
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array(texts, pyarrow.string()))


def check_storable(column: str, value: object) -> None:
    """Refuse a value that cannot be written down: half a surrogate pair in it, an object of Python, a huge number."""
    if _is_too_large(value):
        problem = "it holds a number beyond 64 bits"
        raise BadValueError(RowError.NUMBER, column, value, problem, "Take the column out, or turn it into text.")
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"it has half a surrogate pair ({error.object[error.start]!r})"
        remedy = "Remove the character, or read the source with its true encoding."
        raise BadValueError(RowError.TEXT, column, value, problem, remedy) from error
    except TypeError as error:
        problem = f"it is of a kind that no file holds ({error})"
        raise BadValueError(
            RowError.TYPE, column, value, problem, "Take the column out, or turn it into text."
        ) from error


def _is_too_large(value: object) -> bool:
    if isinstance(value, int):
        return not -(2**63) <= value < 2**63
    if isinstance(value, Mapping):
        return any(map(_is_too_large, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_too_large, value))


def merged_schema(first: Any, second: Any) -> Any:
    """The columns of both, each of a type that holds the values of both."""
    import pyarrow

    fields = {field.name: field.type for field in first}
    for field in second:
        fields[field.name] = merged_type(fields[field.name], field.type) if field.name in fields else field.type
    return pyarrow.schema(list(fields.items()))


def merged_type(first: Any, second: Any) -> Any:
    """A type that holds the values of both: of the same shape where there is one, else JSON."""
    import pyarrow
    from pyarrow import types

    if first == second or types.is_null(second):
        return first
    if types.is_null(first):
        return second
    if {first, second} == {pyarrow.int64(), pyarrow.float64()}:
        return pyarrow.float64()
    if types.is_list(first) and types.is_list(second):
        inner = merged_type(first.value_type, second.value_type)
        return pyarrow.json_() if _has_json(inner) else pyarrow.list_(inner)
    if types.is_struct(first) and types.is_struct(second):
        merged = merged_schema(pyarrow.schema(list(first)), pyarrow.schema(list(second)))
        return pyarrow.json_() if any(_has_json(field.type) for field in merged) else pyarrow.struct(list(merged))
    return pyarrow.json_()


def _has_json(kind: Any) -> bool:
    import pyarrow

    return bool(kind == pyarrow.json_())


def adapted(table: Any, schema: Any) -> Any:
    """The table with the columns and types of a schema that holds its values."""
    import pyarrow

    columns = []
    for field in schema:
        if field.name not in table.column_names:
            columns.append(pyarrow.nulls(len(table), field.type))
            continue
        column = table.column(field.name).combine_chunks()
        if column.type == field.type:
            columns.append(column)
        elif _has_json(field.type):
            columns.append(as_json(column.to_pylist()))
        else:
            columns.append(pyarrow.array(column.to_pylist(), type=field.type))
    return pyarrow.Table.from_arrays(columns, schema=schema)
