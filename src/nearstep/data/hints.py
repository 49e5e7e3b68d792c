"""What the user should know of how prompts and the chat template meet, one sentence each."""

from collections.abc import Iterator
from itertools import islice

from transformers import PreTrainedTokenizerBase

from nearstep.common.template_kwargs import COLUMN
from nearstep.config.ppo import PPOConfig
from nearstep.data.formats.recognise import HEAD_ROWS
from nearstep.data.mix import PromptMix
from nearstep.data.prompts import PromptSet
from nearstep.data.row_errors import BadValueError
from nearstep.data.templates import template_notes, unused_keywords
from nearstep.data.tokenise import keywords_of

# Columns that hold prompts, and the formats that take them.
PROMPT_COLUMNS = {"prompt": "prompt", "messages": "messages", "query": "query", "conversations": "sharegpt"}


def hints(config: PPOConfig, tokenizer: PreTrainedTokenizerBase, prompts: PromptMix) -> list[str]:
    """Marks that are no tokens, texts beside a chat template, keywords that it does not read, other prompt columns."""
    chats = any(_has_chats(one) for one in prompts.sets)
    said = template_notes(tokenizer, config.prompt_type)
    keywords = [*(config.chat_template_kwargs or {}), *(name for one in prompts.sets for name in _row_keywords(one))]
    if keywords and chats:
        said += unused_keywords(tokenizer, keywords)
    elif keywords:
        said.append(f"{COLUMN} has no effect: no prompt is a chat.")
    for one in prompts.sets:
        where = f"{one.table.label}: " if len(prompts.sets) > 1 else ""
        if config.prompt_type == "none" and tokenizer.chat_template is not None and _has_texts(one):
            said.append(
                f"{where}Prompts are text, so the tokenizer's chat template is not used. For a chat model give "
                "conversational rows ('messages', or messages in 'prompt'), or set prompt_type = chat."
            )
        said += [where + sentence for sentence in _other_columns(config, one)]
    return said


def _has_chats(prompts: PromptSet) -> bool:
    prepared = prompts.table.prepared
    return (prompts.report.counts.chats if prepared is None else prepared.manifest.chats) > 0


def _has_texts(prompts: PromptSet) -> bool:
    if prompts.reader.layout.format is None:
        return False
    prepared = prompts.table.prepared
    if prepared is not None:
        return prepared.manifest.chats < prepared.manifest.rows_written and prepared.manifest.prompt_type == "none"
    counts = prompts.report.counts
    return not prompts.reader.layout.has_ids and counts.chats < counts.read - counts.row_errors.total()


def _row_keywords(prompts: PromptSet) -> Iterator[str]:
    """Those that the first rows name."""
    for row in islice(prompts.table.rows, HEAD_ROWS) if COLUMN in prompts.table.columns else ():
        try:
            yield from keywords_of(row)
        except BadValueError:
            continue  # a bad row, which is told as such


def _other_columns(config: PPOConfig, prompts: PromptSet) -> Iterator[str]:
    """Which other column could have been the prompt."""
    shown = prompts.reader.layout.format
    if shown is None or prompts.reader.layout.has_ids or config.dataset_format is not None:
        return
    others = [name for name in PROMPT_COLUMNS if name in prompts.table.columns and name not in shown.takes]
    for name in others:
        yield (
            f"Prompts come from the column {shown.column!r}; dataset_format = {PROMPT_COLUMNS[name]} takes {name!r} "
            "instead."
        )
