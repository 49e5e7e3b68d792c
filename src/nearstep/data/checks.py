"""Which values can be a prompt or an answer, and what is wrong with those that cannot."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy
import torch

from nearstep.common.errors import shorten
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.types import Message, PromptInput

ROLES = ("system", "developer", "user", "assistant", "tool")

IDS_REMEDY = "Give each prompt's ids as one list of whole numbers."
MESSAGE_REMEDY = "Give each message 'role' and 'content', and one text as content."


def value_of(row: Mapping[str, object], column: str) -> object:
    """The value in a column, which must be there and not None."""
    if column not in row:
        remedy = f"Give every row its {column!r}."
        raise BadValueError(RowError.NO_COLUMN, column, dict(row), "the row lacks this column", remedy)
    if row[column] is None:
        remedy = f"Give every row its {column!r}, or take the row out."
        raise BadValueError(RowError.NO_VALUE, column, None, "there is no value", remedy)
    return row[column]


def text_or_messages(row: Mapping[str, object], column: str) -> PromptInput:
    """Text or chat messages as they stand in the row, of the right type; their content is not looked at."""
    value = value_of(row, column)
    if isinstance(value, str):
        return value
    if is_messages(value):
        return read_messages(value)
    remedy = "Give text, or a list of messages such as {'role': 'user', 'content': '…'}."
    raise wrong_type(column, value, "text or a list of messages", remedy)


def text_of(row: Mapping[str, object], column: str) -> str:
    """Text as it stands in the row; its content is not looked at."""
    value = value_of(row, column)
    if isinstance(value, str):
        return value
    raise wrong_type(column, value, "text", "Give text.")


def messages_of(row: Mapping[str, object], column: str) -> list[Message]:
    """Chat messages as they stand in the row; their content is not looked at."""
    value = value_of(row, column)
    if is_messages(value):
        return read_messages(value)
    raise wrong_type(column, value, "a list of messages", "Give a list of messages: {'role': 'user', 'content': '…'}.")


def is_messages(value: object) -> bool:
    """Whether a value is a list of mappings, as chat messages are."""
    return isinstance(value, list | tuple) and all(isinstance(item, Mapping) for item in value)


def read_messages(value: Any) -> list[Message]:
    """Messages without the keys whose value is None: `datasets` adds them where only some messages have the key."""
    return [{str(key): part for key, part in message.items() if part is not None} for message in value]


def check_text(text: str, column: str, place: str = "the text") -> None:
    """Refuse text that is empty or that a tokenizer cannot or should not read."""
    if not text.strip():
        raise BadValueError(RowError.EMPTY, column, text, f"{place} is empty", "Take empty rows out.")
    check_characters(text, column, place)


def check_characters(text: str, column: str, place: str = "the text") -> None:
    """Refuse characters that no text has: NUL and halves of surrogate pairs."""
    remedy = "Remove the character, or read the source with its true encoding."
    if "\0" in text:
        problem = f"{place} has NUL at character {text.index(chr(0))} (from 0), as after decoding wrongly"
        raise BadValueError(RowError.TEXT, column, text, problem, remedy)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{place} has half a surrogate pair ({text[error.start]!r}) at character {error.start} (from 0)"
        raise BadValueError(RowError.TEXT, column, text, problem, remedy) from error


def check_prompt(messages: list[Message], column: str, tools: Collection[str] | None = None) -> None:
    """Refuse a chat that no policy can answer; one that ends with the assistant is continued, so has to have text."""
    check_chat(messages, column, tools)
    role = messages[-1].get("role")
    if role in ("system", "developer"):
        problem = f"the last message is from {role!r}, so there is nothing to answer"
        remedy = "End each prompt with the message that the policy shall answer."
        raise BadValueError(RowError.ROLE, column, messages, problem, remedy)
    if role == "assistant" and not str(messages[-1].get("content") or "").strip():
        problem = "the last message is from 'assistant' and has no text, so there is nothing to continue"
        remedy = "End each prompt with a message to answer, or with text to continue."
        raise BadValueError(RowError.ROLE, column, messages, problem, remedy)


def check_chat(messages: list[Message], column: str, tools: Collection[str] | None = None) -> None:
    """Refuse messages without text, unknown roles, roles out of order, and calls of other tools than `tools`."""
    if not messages:
        raise BadValueError(RowError.EMPTY, column, messages, "there is no message", "Take empty rows out.")
    before: object = None
    for number, message in enumerate(messages, start=1):
        place, role = f"message {number} of {len(messages)}", message.get("role")
        _check_message(message, place, column)
        if tools is not None:
            _check_tools(message, place, column, tools)
        misplaced_system = role in ("system", "developer") and number > 1
        misplaced_tool = role == "tool" and before not in ("assistant", "tool")
        if misplaced_system or misplaced_tool:
            follows = f"follows {before!r}" if number > 1 else "stands first"
            remedy = "A system message comes first, a tool message after the assistant's."
            raise BadValueError(RowError.ROLE, column, messages, f"{place} is from {role!r} and {follows}", remedy)
        before = role


def _check_message(message: Message, place: str, column: str) -> None:
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        problem = f"{place} has the role {shorten(role)}, not one of {', '.join(ROLES)}"
        raise BadValueError(RowError.ROLE, column, message, problem, MESSAGE_REMEDY)
    if content is None and role == "assistant" and "tool_calls" in message:
        return
    if not isinstance(content, str):
        problem = f"the content of {place} is a value {kind(content)}, not text"
        raise BadValueError(RowError.TYPE, column, message, problem, MESSAGE_REMEDY)
    if content.strip() or role == "user":
        check_text(content, column, f"the content of {place}")


def _check_tools(message: Message, place: str, column: str, tools: Collection[str]) -> None:
    """Refuse the name of a tool that the row does not offer, in a call or in an answer."""
    calls = message.get("tool_calls") or ()
    named = [_called(call, place, column) for call in calls] if isinstance(calls, list | tuple) else []
    if message.get("role") == "tool" and "name" in message:
        named.append(message["name"])
    for name in named:
        if name not in tools:
            offered = shorten(list(tools)) if tools else "none"
            problem = f"{place} names the tool {shorten(name)}, and the row offers {offered}"
            raise BadValueError(RowError.TOOL, column, message, problem, "List the tool in the row's 'tools'.")


def _called(call: object, place: str, column: str) -> object:
    """The name in a call: {'function': {'name': …}}, or the inner mapping alone."""
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or "name" not in inner:
        remedy = "Write a call as {'type': 'function', 'function': {'name': '…', 'arguments': {…}}}."
        raise BadValueError(RowError.TOOL, column, call, f"a call in {place} names no function", remedy)
    return inner["name"]


def checked_ids(value: object, column: str) -> list[int]:
    """Token ids as a list, from a list, a tensor or an array of one dimension."""
    items = _listed(value, column)
    wrong = next((place for place, item in enumerate(items) if not _is_whole(item)), None)
    if wrong is not None:
        problem = f"item {wrong} (from 0) is a value {kind(items[wrong])}, not a whole number"
        raise BadValueError(RowError.TYPE, column, value, problem, IDS_REMEDY)
    return [int(item) for item in items]


def attended(ids: list[int], mask: object, column: str) -> list[int]:
    """The ids without the padding that an attention mask marks by 0 at either end."""
    marks: Sequence[object] = _listed(mask, column)
    if len(marks) != len(ids) or any(mark not in (0, 1) for mark in marks):
        problem = f"expected 0 or 1 for each of the {len(ids)} token ids, found {len(marks)} items"
        raise BadValueError(RowError.PADDING, column, mask, problem, "Tokenise the prompts anew.")
    places = [place for place, mark in enumerate(marks) if mark]
    if places and len(places) <= places[-1] - places[0]:
        problem = "there is padding between tokens"
        raise BadValueError(RowError.PADDING, column, mask, problem, "Tokenise the prompts anew.")
    return [ids[place] for place in places]


def wrong_type(column: str, value: object, expected: str, remedy: str) -> BadValueError:
    """The error of a value that is not what was expected."""
    return BadValueError(RowError.TYPE, column, value, f"expected {expected}, found a value {kind(value)}", remedy)


def kind(value: object) -> str:
    """A value's type, as it follows the words `a value`."""
    return "None" if value is None else f"of type {type(value).__name__}"


def _listed(value: object, column: str) -> list[Any]:
    if isinstance(value, torch.Tensor | numpy.ndarray) and value.ndim == 1:
        return list(value.tolist())
    if isinstance(value, list | tuple):
        return list(value)
    raise wrong_type(column, value, "a list of whole numbers", IDS_REMEDY)


def _is_whole(number: object) -> bool:
    return isinstance(number, int | numpy.integer) and not isinstance(number, bool)
