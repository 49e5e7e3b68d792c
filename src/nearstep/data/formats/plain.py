"""Rows that hold a prompt under that name: `prompt`, `prompt` and `completion`, `query`, token ids."""

from nearstep.data.checks import text_of, text_or_messages
from nearstep.data.formats.format import Format, PromptRow, Row, answer_text


def _prompt(row: Row) -> PromptRow:
    return PromptRow(text_or_messages(row, "prompt"))


def _prompt_completion(row: Row) -> PromptRow:
    return PromptRow(text_or_messages(row, "prompt"), answer_text(row.get("completion")))


def _query(row: Row) -> PromptRow:
    return PromptRow(text_of(row, "query"))


PROMPT = Format("prompt", ("prompt",), _prompt)
PROMPT_COMPLETION = Format("prompt/completion", ("prompt",), _prompt_completion, has_reference=True)
QUERY = Format("query", ("query",), _query)
