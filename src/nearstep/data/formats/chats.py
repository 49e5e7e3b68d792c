"""Rows that hold a conversation: `messages`, and ShareGPT's `conversations`."""

import json
from collections.abc import Mapping

from nearstep.common.errors import shorten
from nearstep.data.checks import messages_of
from nearstep.data.formats.format import Format, PromptRow, Row, answer_text
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.types import Message

# Who speaks, as ShareGPT and its many children write it.
_SPEAKERS_BY_ROLE = {
    "user": ("human", "user", "prompter"),
    "assistant": ("gpt", "assistant", "model", "chatgpt", "bing", "bard", "function_call"),
    "system": ("system",),
    "tool": ("tool", "observation", "function_response"),
}
SPEAKERS = {speaker: role for role, speakers in _SPEAKERS_BY_ROLE.items() for speaker in speakers}


def _messages(row: Row) -> PromptRow:
    return _before_the_answer(messages_of(row, "messages"), "messages")


def _sharegpt(row: Row) -> PromptRow:
    column = "conversations"
    turns = messages_of(row, column)
    chat = [_message(turn, number, len(turns)) for number, turn in enumerate(turns, start=1)]
    system = row.get("system")
    if isinstance(system, str) and system.strip() and chat[:1] and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": system})
    return _before_the_answer(chat, column)


def _before_the_answer(chat: list[Message], column: str) -> PromptRow:
    """Everything up to the answer with which a recorded conversation ends, if it ends with one."""
    if not chat or chat[-1].get("role") != "assistant":
        return PromptRow(chat)
    if len(chat) == 1:
        remedy = "Give conversations in which somebody asks, or put what shall be continued into 'prompt'."
        raise BadValueError(RowError.EMPTY, column, chat, "there is no message before the answer", remedy)
    return PromptRow(chat[:-1], answer_text(chat[-1:]))


def _message(turn: Message, number: int, turns: int) -> Message:
    """A turn as a message: {'from': 'human', 'value': '…'} becomes {'role': 'user', 'content': '…'}."""
    if "role" in turn:
        return turn
    speaker, place = turn.get("from"), f"message {number} of {turns}"
    role = SPEAKERS.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        remedy = f"Give each turn 'from' and 'value'; 'from' is one of {', '.join(SPEAKERS)}."
        raise BadValueError(RowError.ROLE, "conversations", turn, f"{place} is from {shorten(speaker)}", remedy)
    value = turn.get("value")
    if speaker == "function_call":
        return {"role": role, "tool_calls": _calls(value, place)}
    return {"role": role, "content": value}


def _calls(value: object, place: str) -> list[object]:
    """The function calls in the text of a turn: one JSON object, or a list of them."""
    remedy = 'Write a call as JSON: {"name": "…", "arguments": {…}}.'
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        problem = f"the function call in {place} is no JSON"
        raise BadValueError(RowError.TOOL, "conversations", value, problem, remedy) from error
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, Mapping) for call in calls):
        problem = f"the function call in {place} is no object"
        raise BadValueError(RowError.TOOL, "conversations", value, problem, remedy)
    return [{"type": "function", "function": dict(call)} for call in calls]


MESSAGES = Format("messages", ("messages",), _messages)
SHAREGPT = Format("sharegpt", ("conversations", "system"), _sharegpt)
