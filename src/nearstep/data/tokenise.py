"""How one prompt becomes token ids: text, chat messages, or ids that were there already."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError
from nearstep.common.template_kwargs import COLUMN, row_kwargs
from nearstep.data.checks import attended, check_prompt, check_text, checked_ids, value_of, wrong_type
from nearstep.data.row_errors import BadValueError, RowError
from nearstep.types import Message, PromptInput

# none: text under the tokenizer's own rule, chats under its template. raw: text and nothing else. raw_bos: BOS before
# it. chat: text as the message of a user.
PromptStyle: TypeAlias = Literal["none", "raw", "raw_bos", "chat"]


@dataclass(frozen=True)
class Written:
    """A prompt as the text that is tokenised; a chat brings its special tokens with it."""

    text: str
    is_chat: bool


@dataclass(frozen=True)
class Encoded:
    """The ids of one prompt, and whether padding or the tokenizer's EOS was taken off them."""

    ids: list[int]
    had_padding: bool = False
    had_eos: bool = False


@dataclass(frozen=True)
class PromptTokenizer:
    """A tokenizer under the rules for prompts: its special tokens, but never an EOS of its own at the end."""

    tokenizer: PreTrainedTokenizerBase
    vocab_size: int  # of the policy's embedding
    adds_eos: bool
    style: PromptStyle = "none"
    template_kwargs: Mapping[str, object] = field(default_factory=dict)

    @staticmethod
    def of(
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        style: PromptStyle = "none",
        template_kwargs: Mapping[str, object] | None = None,
    ) -> "PromptTokenizer":
        """Find out whether the tokenizer ends texts with EOS. Raises ConfigError for a style that it cannot follow."""
        if style == "raw_bos" and tokenizer.bos_token_id is None:
            raise ConfigError("prompt_type = raw_bos begins prompts with BOS, and the tokenizer has none")
        eos = tokenizer.eos_token_id
        adds_eos = eos is not None and tokenizer("a")["input_ids"][-1:] == [eos]
        return PromptTokenizer(tokenizer, vocab_size, adds_eos, style, template_kwargs or {})

    def for_a_thread(self) -> "PromptTokenizer":
        """The same with a tokenizer of its own: fast ones change their settings in place, and must not while in use."""
        return replace(self, tokenizer=deepcopy(self.tokenizer))

    def shown(self, prompt: PromptInput) -> PromptInput:
        """The prompt as rewards and people see it: under the style `chat` a text is what a user says."""
        if self.style == "chat" and isinstance(prompt, str):
            return [{"role": "user", "content": prompt}]
        return prompt

    def write(self, prompt: PromptInput, column: str, row: Mapping[str, object]) -> Written:
        """The text of a prompt; raises `BadValueError`. For a chat its `row` may offer tools and name keywords for the
        template, which win over those of the settings.
        """
        if isinstance(prompt, str):
            check_text(prompt, column)
        prompt = self.shown(prompt)
        if isinstance(prompt, str):
            return Written(prompt, is_chat=False)
        if self.style in ("raw", "raw_bos"):
            remedy = "Set prompt_type to none, to chat or to the name of a template."
            raise BadValueError(
                RowError.TYPE, column, prompt, f"prompt_type {self.style} takes text, no messages", remedy
            )
        kwargs = {**self.template_kwargs, **keywords_of(row)}
        return Written(self._rendered(prompt, column, _tools(row.get("tools")), kwargs), is_chat=True)

    def encode(self, written: Sequence[Written]) -> list[Encoded]:
        """The ids of many prompts, in their order."""
        texts = [prompt.text for prompt in written if not prompt.is_chat]
        chats = [prompt.text for prompt in written if prompt.is_chat]
        of_texts = iter(self._ids(texts, special_tokens=self.style == "none"))
        of_chats = iter(self._ids(chats, special_tokens=False))
        return [Encoded(next(of_chats)) if prompt.is_chat else self._framed(next(of_texts)) for prompt in written]

    def given(self, row: Mapping[str, object]) -> Encoded:
        """The ids that a row brings, without padding; raises `BadValueError`."""
        value = value_of(row, "input_ids")
        ids = checked_ids(value, "input_ids")
        if row.get("attention_mask") is not None:
            real = attended(ids, row["attention_mask"], "attention_mask")
            return Encoded(real, had_padding=len(real) < len(ids))
        if ids and self._pad_id in (ids[0], ids[-1]):
            problem = f"there is padding (id {self._pad_id}) at an end, and no attention_mask"
            remedy = "Tokenise with padding=False, or keep the column attention_mask: padding is then taken off."
            raise BadValueError(RowError.PADDING, "input_ids", value, problem, remedy)
        return Encoded(ids)

    def check(self, ids: Sequence[int], column: str, value: object) -> None:
        """Refuse a prompt without tokens, or with tokens that the policy does not know."""
        if not ids:
            raise BadValueError(RowError.EMPTY, column, value, "there is no token", "Take empty rows out.")
        for token in (min(ids), max(ids)):
            if not 0 <= token < self.vocab_size:
                problem = f"id {token} lies outside the policy's vocabulary of {self.vocab_size}"
                remedy = "Use the tokenizer that belongs to the policy."
                raise BadValueError(RowError.VOCABULARY, column, value, problem, remedy)

    def _framed(self, ids: list[int]) -> Encoded:
        if self.style == "raw_bos":
            bos = self.tokenizer.bos_token_id
            return Encoded([bos, *ids])
        return Encoded(ids[:-1], had_eos=True) if self.adds_eos and self.style == "none" else Encoded(ids)

    def _ids(self, texts: list[str], *, special_tokens: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            texts, add_special_tokens=special_tokens, verbose=False,
            return_attention_mask=False, return_token_type_ids=False,
        )  # fmt: skip
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def _rendered(
        self, messages: list[Message], column: str, tools: list[Any] | None, kwargs: dict[str, object]
    ) -> str:
        check_prompt(messages, column, None if tools is None else _names(tools))
        if self.tokenizer.chat_template is None:
            problem = "these are chat messages, and the tokenizer has no chat template"
            remedy = "Set tokenizer.chat_template, set prompt_type to the name of a template, or give prompts as text."
            raise BadValueError(RowError.TEMPLATE, column, messages, problem, remedy)
        continues = messages[-1]["role"] == "assistant"
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False,
                add_generation_prompt=not continues, continue_final_message=continues, **kwargs,
            )  # fmt: skip
        except (TemplateError, TypeError, ValueError) as error:
            problem = f"the tokenizer's chat template refuses these messages: {error}"
            remedy = "Change the messages, or tokenizer.chat_template."
            raise BadValueError(RowError.TEMPLATE, column, messages, problem, remedy) from error
        return text

    @property
    def _pad_id(self) -> int | None:
        """The id that is padding and nothing else."""
        pad = self.tokenizer.pad_token_id
        others = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.unk_token_id)
        return None if pad in others else pad


def keywords_of(row: Mapping[str, object]) -> dict[str, object]:
    """What a row hands to the chat template; raises `BadValueError`."""
    value = row.get(COLUMN)
    try:
        return row_kwargs(value)
    except ValueError as error:
        problem = f"expected {error}"
        raise BadValueError(RowError.TEMPLATE, COLUMN, value, problem, "Give a mapping, or its JSON.") from error


def _tools(value: object) -> list[Any] | None:
    """The functions that a row offers, as the template takes them; they may be written as JSON."""
    if value is None:
        return None
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        problem = "the list of tools is no JSON"
        raise BadValueError(RowError.TOOL, "tools", value, problem, "Give a list of function schemas.") from error
    if not isinstance(tools, list | tuple):
        raise wrong_type("tools", value, "a list of function schemas", "Give one schema for each tool.")
    return [_without_none(tool) for tool in tools] or None


def _without_none(value: object) -> object:
    """A schema without the keys that `datasets` adds where only some of its neighbours have them."""
    if isinstance(value, Mapping):
        return {key: _without_none(part) for key, part in value.items() if part is not None}
    return [_without_none(part) for part in value] if isinstance(value, list) else value


def _names(tools: list[Any]) -> list[str]:
    """The names of the functions that are offered."""
    names = []
    for tool in tools:
        schema = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(schema, Mapping) or not isinstance(schema.get("name"), str):
            remedy = "Give {'type': 'function', 'function': {'name': …}}."
            raise BadValueError(RowError.TOOL, "tools", tool, "a tool has no name", remedy)
        names.append(schema["name"])
    return names
