"""Rows with a better and a worse answer: `chosen` and `rejected`, with a prompt of their own or a shared start."""

import math
import numbers
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from nearstep.data.checks import check_chat, check_text, text_or_messages
from nearstep.data.formats.format import (
    Format,
    PreferencePair,
    PromptRow,
    Row,
    answer_text,
    common_length,
    shared_start,
)
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.types import Message, PromptInput

PairsOfRow: TypeAlias = Callable[[Row], list[PreferencePair]]

NO_START = "Give the prompt in a column of its own, 'prompt', or begin both answers with it."
ALIKE_REMEDY = "Take out pairs without a difference."


def checked_pair(pair: PreferencePair, column: str = "chosen", other: str = "rejected") -> PreferencePair:
    """The pair itself, if its answers differ, are answers, and are of the prompt's kind."""
    prompt = pair.prompt
    if isinstance(prompt, str):
        check_text(prompt, "prompt", "the prompt")
    for name, answer in ((column, pair.chosen), (other, pair.rejected)):
        if isinstance(answer, str):
            check_text(answer, name)
        else:
            assert isinstance(prompt, list)
            _check_answer(prompt, answer, name)
    if pair.chosen == pair.rejected:
        problem = f"{column} and {other} are the same answer"
        raise BadValueError(RowError.ALIKE, column, pair.chosen, problem, ALIKE_REMEDY)
    return pair


def margin_of(row: Row) -> float | None:
    """By how much the chosen answer is better: `margin`, else the gap of `score_chosen` and `score_rejected`."""
    if row.get("margin") is not None:
        margin = number_of(row, "margin")
        if margin < 0:
            problem = "below 0, rejected would be the better answer"
            raise BadValueError(RowError.NUMBER, "margin", margin, problem, "Exchange the two answers.")
        return margin
    if row.get("score_chosen") is None or row.get("score_rejected") is None:
        return None
    gap = number_of(row, "score_chosen") - number_of(row, "score_rejected")
    if gap < 0:
        problem = f"it is below score_rejected = {row['score_rejected']}, and its answer is the chosen one"
        raise BadValueError(RowError.NUMBER, "score_chosen", row["score_chosen"], problem, "Exchange the two answers.")
    return gap


def number_of(row: Row, column: str) -> float:
    """A finite number."""
    value = row.get(column)
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    remedy = "Correct it, or leave the value out."
    raise BadValueError(RowError.NUMBER, column, value, "expected a finite number", remedy)


def _explicit_pair(row: Row) -> list[PreferencePair]:
    prompt, chosen, rejected = (text_or_messages(row, column) for column in ("prompt", "chosen", "rejected"))
    margin = margin_of(row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if isinstance(prompt, str):
            return [checked_pair(PreferencePair(prompt, chosen, rejected, margin))]
        return [checked_pair(PreferencePair(prompt, _said(chosen), _said(rejected), margin))]
    first, second = _both_messages(chosen, rejected)
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if first[: len(messages)] == messages and second[: len(messages)] == messages:
        first, second = first[len(messages) :], second[len(messages) :]
    elif first[0].get("role") != "assistant":  # whole conversations, which say more than the prompt's text
        return _pair_with_shared_start(row)
    return [checked_pair(PreferencePair(messages, first, second, margin))]


def _pair_with_shared_start(row: Row) -> list[PreferencePair]:
    chosen, rejected = text_or_messages(row, "chosen"), text_or_messages(row, "rejected")
    margin = margin_of(row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        start = _shared_text(chosen, rejected)
        _require_start(start.strip(), row)
        pair = PreferencePair(start, chosen[len(start) :], rejected[len(start) :], margin)
        return [checked_pair(pair)]
    first, second = _both_messages(chosen, rejected)
    same = shared_start(first, second)
    _require_start(same, row)
    return [checked_pair(PreferencePair(first[:same], first[same:], second[same:], margin))]


def _explicit_prompt(row: Row) -> PromptRow:
    return PromptRow(text_or_messages(row, "prompt"), answer_text(row.get("chosen")))


def _shared_prompt(row: Row) -> PromptRow:
    [pair] = _pair_with_shared_start(row)
    return PromptRow(pair.prompt, answer_text(pair.chosen))


def _shared_text(chosen: str, rejected: str) -> str:
    """The text with which both begin, back to the end of a word: answers may begin with the same letters."""
    same = common_length(chosen, rejected)
    if same == len(chosen) == len(rejected):
        problem = "chosen and rejected are the same text"
        raise BadValueError(RowError.ALIKE, "chosen", chosen, problem, ALIKE_REMEDY)
    while same and not chosen[same - 1].isspace():
        same -= 1
    return chosen[:same].rstrip() if same else ""


def _both_messages(chosen: PromptInput, rejected: PromptInput) -> tuple[list[Message], list[Message]]:
    if isinstance(chosen, str) or isinstance(rejected, str):
        problem = "one of chosen and rejected is text, the other is messages"
        raise BadValueError(RowError.TYPE, "rejected", rejected, problem, "Give both as text, or both as messages.")
    for column, messages in (("chosen", chosen), ("rejected", rejected)):
        if not messages:
            raise BadValueError(RowError.EMPTY, column, messages, "there is no message", "Take empty rows out.")
    return chosen, rejected


def _require_start(start: object, row: Row) -> None:
    if not start:
        problem = "chosen and rejected do not begin with the same prompt"
        raise BadValueError(RowError.EMPTY, "chosen", row["chosen"], problem, NO_START)


def _check_answer(prompt: list[Message], answer: list[Message], column: str) -> None:
    if not answer:
        raise BadValueError(RowError.EMPTY, column, answer, "there is no message in the answer", "Take empty rows out.")
    check_chat([*prompt, *answer], column)
    for message in (answer[0], answer[-1]):
        if message.get("role") != "assistant":
            problem = f"an answer begins and ends with the assistant, this one has {message.get('role')!r}"
            raise BadValueError(RowError.ROLE, column, answer, problem, "Give the assistant's messages as the answer.")
    if not str(answer[-1].get("content") or "").strip() and "tool_calls" not in answer[-1]:
        raise BadValueError(RowError.EMPTY, column, answer, "the answer is empty", "Take empty rows out.")


def _said(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]


def _labelled(convert: PairsOfRow, row: Row) -> list[PreferencePair]:
    """What a conversion makes of a row, with the column `preference` heeded."""
    return [replace(pair, preference=_preference_of(row, pair.margin)) for pair in convert(row)]


def _preference_of(row: Row, margin: float | None) -> float:
    """The probability that the chosen answer is the better one; 1 where nothing else is said."""
    if row.get("preference") is None:
        return 1.0
    preference = number_of(row, "preference")
    remedy = "Give the probability that chosen is better: 1 if it surely is, 0.5 for a tie."
    if not 0 <= preference <= 1:
        raise BadValueError(RowError.NUMBER, "preference", preference, "it is no probability", remedy)
    if preference <= 0.5 and margin:
        problem = f"chosen is not the better answer, and yet better by a margin of {margin:g}"
        raise BadValueError(RowError.NUMBER, "preference", preference, problem, remedy)
    return preference


# A format can be pickled, so no conversion is a closure.
_labelled_explicit = partial(_labelled, _explicit_pair)
_labelled_shared = partial(_labelled, _pair_with_shared_start)
EXPLICIT = Format("prompt/chosen/rejected", ("prompt",), _explicit_prompt, _labelled_explicit, has_reference=True)
SHARED = Format("chosen/rejected", ("chosen", "rejected"), _shared_prompt, _labelled_shared, has_reference=True)
BINARIZED = Format("ultrafeedback_binarized", ("prompt",), _explicit_prompt, _explicit_pair, has_reference=True)
