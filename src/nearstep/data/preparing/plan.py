"""What shall be done to every row: a description small enough to travel with each piece of work."""

import functools
from dataclasses import dataclass
from typing import Literal

from nearstep.data.formats.recognise import format_named
from nearstep.data.layout import Layout
from nearstep.data.reader import OnLongPrompt, PromptReader
from nearstep.data.templates import style_of, with_template
from nearstep.data.tokenise import PromptTokenizer
from nearstep.models.load import load_tokenizer


@dataclass(frozen=True)
class Plan:
    """How rows become prompts: names and numbers only, so that every process builds the same reader."""

    tokenizer: str  # a folder or a hub name
    prompt_type: str
    trust_remote_code: bool
    dataset_format: str | None  # None: token ids and nothing else
    has_reference: bool
    has_ids: bool
    names: tuple[tuple[str, str], ...]  # columns: ours and theirs
    max_length: int | None
    on_long_prompt: OnLongPrompt
    on_bad_row: Literal["raise", "drop"]

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the prompts stand in a row."""
        if self.dataset_format is None:
            return Layout(None, self.has_ids)
        found = format_named(self.dataset_format)
        return Layout(found.giving_reference(self.has_reference), self.has_ids)


@functools.lru_cache(maxsize=1)
def reader_of(plan: Plan) -> PromptReader:
    """The reader that a plan describes, built once in each process."""
    plain = load_tokenizer(plan.tokenizer, trust_remote_code=plan.trust_remote_code)
    tokenizer = with_template(plain, plan.prompt_type)
    encoder = PromptTokenizer.of(tokenizer, len(tokenizer), style_of(plan.prompt_type))
    return PromptReader(plan.layout, encoder, plan.max_length, plan.on_long_prompt)
