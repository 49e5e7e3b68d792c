"""Which prompts a file, a folder or a hub data set gives to evaluate on, in the form that training would give them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import torch

from nearstep.common.errors import ConfigError
from nearstep.common.random_streams import stream
from nearstep.common.telling import tell
from nearstep.config.generating import DataFileSettings
from nearstep.data.encode import encode_prompts
from nearstep.data.formats.chats import MESSAGES
from nearstep.data.formats.format import Format
from nearstep.data.formats.plain import PROMPT
from nearstep.data.formats.recognise import HEAD_ROWS, format_named, recognise, with_reference
from nearstep.data.load import load_rows
from nearstep.data.prompts import PromptSet
from nearstep.data.table import Table, with_columns
from nearstep.data.templates import style_of
from nearstep.evaluation.text_model import TextModel

FILES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class PromptLimit:
    """The most tokens of a prompt, and what happens to longer ones."""

    tokens: int | None
    on_long: Literal["error", "drop", "cut_left"]

    @staticmethod
    def beside(
        response_length: int, model: TextModel, wanted: int | None, on_long: Literal["error", "drop", "cut_left"]
    ) -> "PromptLimit":
        """What the model's positions leave beside a response, or `wanted`. Raises ConfigError where that is more."""
        positions = model.limits.positions
        if positions is None:
            return PromptLimit(wanted, on_long)
        room = positions - response_length
        if room < 1 or (wanted or 0) > room:
            raise ConfigError(
                f"the model has {positions} positions: max_prompt_length = {wanted} and response_length = "
                f"{response_length} together are more. Lower one of them"
            )
        return PromptLimit(wanted or room, on_long)


def read_rows(settings: DataFileSettings, seed: int) -> Table:
    """The rows that the settings name, columns under our names, at most `max_samples`, drawn by the seed, in order.

    Raises DataError or ConfigError.
    """
    name = settings.dataset_name
    if name is None:
        raise ConfigError("dataset_name is missing: the prompts, a file, a folder or a hub name")
    is_file = Path(name).is_file() or name.endswith(FILES)
    split = settings.split or ("train" if is_file else "test")
    table = load_rows(name, split=split, config=settings.dataset_config, on_bad_row=settings.on_bad_row)
    table = with_columns(table, dict(settings.columns))
    found = _format(table, settings.dataset_format)
    if settings.max_samples is None or len(table) <= settings.max_samples or (found is not None and found.gathers):
        return table
    drawn = torch.randperm(len(table), generator=stream(seed, "max_samples"))[: settings.max_samples].sort().values
    numbers = drawn.tolist()
    return table.of_rows([table.rows[number] for number in numbers], [table.position(number) for number in numbers])


def read_prompts(table: Table, model: TextModel, settings: DataFileSettings, limit: PromptLimit) -> PromptSet:
    """The prompts of a table. A conversation that is recorded beside its first message is taken whole; where the model
    has no chat template, as text, with the recorded answer as its reference.

    Raises DataError naming the rows that cannot be used.
    """
    taken = evaluated_format(table, settings.dataset_format)
    if settings.dataset_format is None and taken == MESSAGES.name and _is_for_text(table, model):
        tell("the tokenizer has no chat template, so prompts are the text of 'prompt', references those of 'messages'")
        table, taken = _with_answers(table), None
    return encode_prompts(
        table,
        model.tokenizer,
        vocab_size=model.limits.rows,
        max_prompt_length=limit.tokens,
        on_long_prompt=limit.on_long,
        on_bad_row=settings.on_bad_row,
        dataset_format=taken,
        prompt_type=style_of(settings.prompt_type),
        template_kwargs=settings.chat_template_kwargs,
    )


def evaluated_format(table: Table, given: str | None) -> str | None:
    """The format as it is named, or `messages` where these hold answers and the column `prompt` beside them none."""
    if given is not None or "messages" not in table.columns or "input_ids" in table.columns:
        return given
    found = recognise(table.columns, _head(table))
    if found is None or found.name != PROMPT.name or "reference" in table.columns:
        return None
    return MESSAGES.name if with_reference(MESSAGES, _head(table)).has_reference else None


def _is_for_text(table: Table, model: TextModel) -> bool:
    """Whether prompts lie there as text too, and the model could read no chat."""
    texts = all(isinstance(row.get("prompt"), str) for row in _head(table))
    return model.tokenizer.chat_template is None and texts and "prompt" in table.columns


def _with_answers(table: Table) -> Table:
    """The table with the answer of every recorded conversation as the column `reference`."""
    rows = [{**row, "reference": _last_answer(row.get("messages"))} for row in table.rows]
    positions = [table.position(number) for number in range(len(rows))]
    return replace(table.of_rows(rows, positions), columns=(*table.columns, "reference"))


def _last_answer(turns: object) -> object:
    last = turns[-1] if isinstance(turns, list) and turns else None
    return last.get("content") if isinstance(last, dict) and last.get("role") == "assistant" else None


def _format(table: Table, given: str | None) -> Format | None:
    return recognise(table.columns, _head(table)) if given is None else format_named(given)


def _head(table: Table) -> list[Mapping[str, object]]:
    return list(islice(table.rows, HEAD_ROWS))
