"""Which format a data set has: told by its columns and first rows; its name is a hint, and never decides."""

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from nearstep.common.errors import ConfigError
from nearstep.data.formats.chats import MESSAGES, SHAREGPT
from nearstep.data.formats.format import Format, Row
from nearstep.data.formats.instructions import ALPACA, ULTRAFEEDBACK
from nearstep.data.formats.plain import PROMPT, PROMPT_COMPLETION, QUERY
from nearstep.data.formats.preferences import BINARIZED, EXPLICIT, SHARED
from nearstep.data.formats.summaries import COMPARISONS, TLDR
from nearstep.data.formats.transcripts import CHAT_TRANSCRIPTS, TRANSCRIPTS, looks_like_transcript
from nearstep.data.formats.trees import OASST

HEAD_ROWS = 100  # rows that are looked at where columns alone do not tell


@dataclass(frozen=True)
class _Sign:
    """What tells a format: columns that must all be there, and, where they do not tell, something in the rows."""

    format: Format
    columns: tuple[str, ...]
    any_row: Callable[[Row], bool] | None = None


def _is_transcript(row: Row) -> bool:
    return looks_like_transcript(row.get("chosen")) and looks_like_transcript(row.get("rejected"))


# From the most telling to the least: the first that fits is the format.
_SIGNS: tuple[_Sign, ...] = (
    _Sign(OASST, ("message_id", "parent_id", "text", "role")),
    _Sign(BINARIZED, ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")),
    _Sign(EXPLICIT, ("prompt", "chosen", "rejected")),
    _Sign(PROMPT_COMPLETION, ("prompt", "completion")),
    _Sign(PROMPT, ("prompt",)),
    _Sign(TRANSCRIPTS, ("chosen", "rejected"), _is_transcript),
    _Sign(SHARED, ("chosen", "rejected")),
    _Sign(MESSAGES, ("messages",)),
    _Sign(SHAREGPT, ("conversations",)),
    _Sign(COMPARISONS, ("info", "summaries", "choice")),
    _Sign(TLDR, ("subreddit", "title", "post")),
    _Sign(ULTRAFEEDBACK, ("instruction", "completions")),
    _Sign(ALPACA, ("instruction",)),
    _Sign(QUERY, ("query",)),
)
FORMATS: tuple[Format, ...] = (*(sign.format for sign in _SIGNS), CHAT_TRANSCRIPTS)

# What the names of well-known data sets suggest.
_HINTS: tuple[tuple[str, tuple[Format, ...]], ...] = (
    ("hh-rlhf", (TRANSCRIPTS, CHAT_TRANSCRIPTS)),
    ("oasst", (OASST,)),
    ("ultrafeedback_binarized", (BINARIZED,)),
    ("ultrafeedback", (ULTRAFEEDBACK, BINARIZED)),
    ("tldr", (TLDR, COMPARISONS, PROMPT_COMPLETION)),
    ("alpaca", (ALPACA,)),
    ("sharegpt", (SHAREGPT,)),
)


def recognise(columns: Collection[str], head: Sequence[Row]) -> Format | None:
    """The format that columns and first rows show; None if they show none."""
    for sign in _SIGNS:
        if set(sign.columns) <= set(columns) and (sign.any_row is None or any(map(sign.any_row, head))):
            return with_reference(sign.format, head)
    return None


def with_reference(found: Format, head: Sequence[Row]) -> Format:
    """A format of conversations gives references where they are recorded with their answers."""
    if found.name not in (MESSAGES.name, SHAREGPT.name):
        return found
    return replace(found, has_reference=any(_ends_with_answer(row.get(found.column)) for row in head))


def format_named(name: str) -> Format:
    """The format that a setting names. Raises ConfigError listing all."""
    known = {found.name: found for found in FORMATS}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"dataset_format = {name!r} is unknown{hint} There are {', '.join(known)}.")
    return known[name]


def contradicted_hint(name: str, found: Format | None) -> list[str]:
    """A sentence where the data set's name suggests another format than the one that its columns show."""
    expected = next((formats for word, formats in _HINTS if word in name.lower()), None)
    if found is None or expected is None or found.name in {one.name for one in expected}:
        return []
    return [f"Its name suggests the format {expected[0].name}, its columns show {found.name}: columns decide."]


def _ends_with_answer(turns: object) -> bool:
    if not isinstance(turns, list | tuple) or not turns or not isinstance(turns[-1], dict):
        return False
    return turns[-1].get("role") == "assistant" or turns[-1].get("from") in ("gpt", "assistant")
