"""What shall be done to every row: a description small enough to travel with each piece of work."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nearstep.data.formats.recognise import format_named
from nearstep.data.layout import Layout
from nearstep.data.reader import OnLongPrompt, PromptReader
from nearstep.data.templates import style_of, with_template
from nearstep.data.tokenise import PromptTokenizer
from nearstep.models.load import load_tokenizer


@dataclass(frozen=True)
class Request:
    """What shall be prepared, and how."""

    source: str
    tokenizer: str  # a folder or a hub name
    output: Path
    split: str = "train"
    config: str | None = None
    dataset_format: str | None = None
    columns: tuple[tuple[str, str], ...] = ()  # ours and theirs
    prompt_type: str = "none"
    max_length: int | None = None
    on_long_prompt: OnLongPrompt = "drop"
    on_bad_row: Literal["raise", "drop"] = "raise"
    max_samples: int | None = None
    seed: int = 42
    workers: int = 1
    log_interval: int = 10_000
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Plan:
    """How rows become prompts: names and numbers only, so that every process builds the same reader."""

    request: Request
    format_name: str | None  # None: token ids and nothing else
    has_reference: bool
    has_ids: bool

    @functools.cached_property
    def layout(self) -> Layout:
        """Where the prompts stand in a row."""
        if self.format_name is None:
            return Layout(None, self.has_ids)
        return Layout(format_named(self.format_name).giving_reference(self.has_reference), self.has_ids)


@functools.lru_cache(maxsize=1)
def reader_of(plan: Plan) -> PromptReader:
    """The reader that a plan describes, built once in each process."""
    request = plan.request
    plain = load_tokenizer(request.tokenizer, trust_remote_code=request.trust_remote_code)
    tokenizer = with_template(plain, request.prompt_type)
    encoder = PromptTokenizer.of(tokenizer, len(tokenizer), style_of(request.prompt_type))
    return PromptReader(plan.layout, encoder, request.max_length, request.on_long_prompt)
