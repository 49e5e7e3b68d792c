"""Rows that hold transcripts of a human and an assistant, as Anthropic's hh-rlhf does.

`chosen` and `rejected` are whole dialogues: "\\n\\nHuman: …\\n\\nAssistant: …". The prompt ends with the marker of the
last assistant turn, so nothing of a longer dialogue is lost.
"""

import re
from collections.abc import Sequence

from nearstep.data.checks import text_of
from nearstep.data.formats.format import Format, PreferencePair, PromptRow, Row, common_length, shared_start
from nearstep.data.formats.preferences import checked_pair, margin_of
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.types import Message

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_REMEDY = "A transcript is '\\n\\nHuman: …\\n\\nAssistant: …' and ends with what the assistant said."


def looks_like_transcript(value: object) -> bool:
    """Whether a text holds a turn of the assistant."""
    return isinstance(value, str) and ASSISTANT in value


def _prompt(row: Row) -> PromptRow:
    prompt, answer = _before_last_answer(text_of(row, "chosen"))
    return PromptRow(prompt, answer)


def _pair(row: Row) -> list[PreferencePair]:
    chosen, rejected = text_of(row, "chosen"), text_of(row, "rejected")
    for column, text in (("chosen", chosen), ("rejected", rejected)):
        _require_answer(text, column)
    marker = chosen.rfind(ASSISTANT, 0, common_length(chosen, rejected))
    if marker < 0:
        raise _no_shared_turn(row)
    start = marker + len(ASSISTANT)
    return [checked_pair(PreferencePair(chosen[:start], chosen[start:], rejected[start:], margin_of(row)))]


def _chat_prompt(row: Row) -> PromptRow:
    chosen = text_of(row, "chosen")
    _, answer = _before_last_answer(chosen)
    return PromptRow(_messages(chosen, "chosen")[:-1], answer.strip())


def _chat_pair(row: Row) -> list[PreferencePair]:
    chosen, rejected = (_messages(text_of(row, column), column) for column in ("chosen", "rejected"))
    same = shared_start(chosen, rejected)
    if same == 0:
        raise _no_shared_turn(row)
    return [checked_pair(PreferencePair(chosen[:same], chosen[same:], rejected[same:], margin_of(row)))]


def _no_shared_turn(row: Row) -> BadValueError:
    problem = "chosen and rejected share no turn before the assistant's"
    remedy = "Begin both transcripts with the same turns."
    return BadValueError(RowError.ROLE, "chosen", row["chosen"], problem, remedy)


def _before_last_answer(text: str) -> tuple[str, str]:
    """The transcript up to and with the last assistant marker, and what follows it."""
    _require_answer(text, "chosen")
    start = text.rfind(ASSISTANT) + len(ASSISTANT)
    return text[:start], text[start:]


def _require_answer(text: str, column: str) -> None:
    if ASSISTANT not in text:
        problem = "the transcript has no turn of the assistant"
        raise BadValueError(RowError.ROLE, column, text, problem, _REMEDY)
    if text.rfind(HUMAN) > text.rfind(ASSISTANT):
        raise BadValueError(RowError.ROLE, column, text, "the transcript ends with the human's turn", _REMEDY)


def _messages(text: str, column: str) -> list[Message]:
    _require_answer(text, column)
    before, *turns = _TURN.split(text)
    if before.strip():
        problem = f"there is text before the first turn: {before[:40]!r}"
        raise BadValueError(RowError.ROLE, column, text, problem, _REMEDY)
    speakers: Sequence[str] = turns[::2]
    return [
        {"role": _ROLES[speaker], "content": said.strip()} for speaker, said in zip(speakers, turns[1::2], strict=True)
    ]


TRANSCRIPTS = Format("hh-rlhf", ("chosen", "rejected"), _prompt, _pair, has_reference=True)
CHAT_TRANSCRIPTS = Format("hh-rlhf-chat", ("chosen", "rejected"), _chat_prompt, _chat_pair, has_reference=True)
