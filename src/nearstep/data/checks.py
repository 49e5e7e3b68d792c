"""Which values can be a prompt, and what is wrong with those that cannot."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch

from nearstep.data.table import Table
from nearstep.errors import DataError, shorten
from nearstep.types import Message, PromptInput

ROLES = ("system", "developer", "user", "assistant", "tool")

NAMED_BAD_ROWS = 5
IDS_REMEDY = "Give each prompt's ids as one list of whole numbers."


class BadValueError(Exception):
    """A value that is no prompt. Never leaves the room: becomes part of a `DataError` that names the row."""

    def __init__(self, column: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.column, self.value, self.problem, self.remedy = column, value, problem, remedy


def bad_rows(table: Table, bad: Sequence[tuple[int, BadValueError]]) -> DataError:
    """The error that names the first bad rows of a table and says what to do about them."""
    named = bad[:NAMED_BAD_ROWS]
    lines = [f"{len(bad)} of {len(table)} rows of {table.label}, cannot be used:"]
    for row, value in named:
        lines.append(f"  {table.position(row)}, column {value.column!r}: {value.problem}: {shorten(value.value, 100)}")
    if len(bad) > len(named):
        lines.append(f"  … and {len(bad) - len(named)} more")
    return DataError("\n".join([*lines, *dict.fromkeys(value.remedy for _, value in named)]))


def value_of(row: Mapping[str, object], column: str) -> object:
    """The value in a column, which must be there and not None."""
    if column not in row:
        raise BadValueError(column, dict(row), "the row lacks this column", f"Give every row its {column!r}.")
    if row[column] is None:
        raise BadValueError(column, None, "there is no value", f"Give every row its {column!r}, or take the row out.")
    return row[column]


def prompt_input(row: Mapping[str, object], column: str) -> PromptInput:
    """Text or chat messages as they stand in the row, of the right type; their content is not looked at.

    Keys of messages whose value is None are left out: `datasets` adds them where only some messages have the key.
    """
    value = value_of(row, column)
    if isinstance(value, str) and column != "messages":
        return value
    if isinstance(value, list | tuple) and column != "query" and all(isinstance(item, Mapping) for item in value):
        return [{str(k): v for k, v in message.items() if v is not None} for message in value]
    expected = {"messages": "a list of messages", "query": "text"}.get(column, "text or a list of messages")
    raise BadValueError(
        column, value, f"expected {expected}, found a value {_kind(value)}",
        "A prompt is text, or a list of messages such as {'role': 'user', 'content': '…'}.",
    )  # fmt: skip


def check_text(text: str, column: str, place: str = "the text") -> None:
    """Refuse text that is empty or that a tokenizer cannot or should not read."""
    if not text.strip():
        raise BadValueError(column, text, f"{place} is empty", "Take empty prompts out.")
    remedy = "Remove the character, or read the source with its true encoding."
    if "\0" in text:
        problem = f"{place} has NUL at character {text.index(chr(0))} (from 0), as after decoding wrongly"
        raise BadValueError(column, text, problem, remedy)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{place} has half a surrogate pair ({text[error.start]!r}) at character {error.start} (from 0)"
        raise BadValueError(column, text, problem, remedy) from error


def check_messages(messages: list[Message], column: str) -> None:
    """Refuse a chat that no policy can answer: a message without text, unknown roles, roles out of order."""
    if not messages:
        raise BadValueError(column, messages, "there is no message", "Take empty prompts out.")
    before: object = None
    for number, message in enumerate(messages, start=1):
        place, role = f"message {number} of {len(messages)}", message.get("role")
        _check_message(message, place, column)
        misplaced_system = role in ("system", "developer") and number > 1
        misplaced_tool = role == "tool" and before not in ("assistant", "tool")
        if misplaced_system or misplaced_tool:
            follows = f"follows {before!r}" if number > 1 else "stands first"
            remedy = "A system message comes first, a tool message after the assistant's."
            raise BadValueError(column, messages, f"{place} is from {role!r} and {follows}", remedy)
        before = role
    if before not in ("user", "tool"):
        problem = f"the last message is from {before!r}, so there is nothing to answer"
        raise BadValueError(column, messages, problem, "End each prompt with the message that the policy shall answer.")


def _check_message(message: Message, place: str, column: str) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        problem = f"{place} has the role {role!r}, not one of {', '.join(ROLES)}"
        raise BadValueError(column, message, problem, "Give each message 'role' and 'content'.")
    if content is None and role == "assistant" and "tool_calls" in message:
        return
    if not isinstance(content, str):
        problem = f"the content of {place} is a value {_kind(content)}, not text"
        raise BadValueError(
            column, message, problem, "Give each message 'role' and 'content', and one text as content."
        )
    if content.strip() or role == "user":
        check_text(content, column, f"the content of {place}")


def checked_ids(value: object, column: str) -> list[int]:
    """Token ids as a list, from a list, a tensor or an array of one dimension."""
    items = _listed(value, column)
    wrong = next((place for place, item in enumerate(items) if not _is_whole(item)), None)
    if wrong is not None:
        problem = f"item {wrong} (from 0) is a value {_kind(items[wrong])}, not a whole number"
        raise BadValueError(column, value, problem, IDS_REMEDY)
    return [int(item) for item in items]


def attended(ids: list[int], mask: object, column: str) -> list[int]:
    """The ids without the padding that an attention mask marks by 0 at either end."""
    marks = _listed(mask, column)
    if len(marks) != len(ids) or any(mark not in (0, 1) for mark in marks):
        problem = f"expected 0 or 1 for each of the {len(ids)} token ids, found {len(marks)} items"
        raise BadValueError(column, mask, problem, "Tokenise the prompts anew.")
    places = [place for place, mark in enumerate(marks) if mark]
    if places and len(places) <= places[-1] - places[0]:
        raise BadValueError(column, mask, "there is padding between tokens", "Tokenise the prompts anew.")
    return [ids[place] for place in places]


def _listed(value: object, column: str) -> list[Any]:
    if isinstance(value, torch.Tensor | numpy.ndarray) and value.ndim == 1:
        return list(value.tolist())
    if isinstance(value, list | tuple):
        return list(value)
    raise BadValueError(column, value, f"expected a list of whole numbers, found a value {_kind(value)}", IDS_REMEDY)


def _is_whole(number: object) -> bool:
    return isinstance(number, int | numpy.integer) and not isinstance(number, bool)


def _kind(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
