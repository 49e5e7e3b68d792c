"""How one row becomes token ids: text, chat messages, or ids that were there already."""

from collections.abc import Mapping
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from nearstep.data.checks import (
    BadValueError,
    attended,
    check_messages,
    check_text,
    checked_ids,
    prompt_input,
    value_of,
)
from nearstep.data.table import Table
from nearstep.errors import DataError
from nearstep.types import Message, PromptInput


@dataclass(frozen=True)
class PromptColumns:
    """`ids` is the column from which the token ids come, `shown` the one that rewards and people see.

    Both are the same unless the data set has `input_ids`; `shown` is None where it has nothing else.
    """

    ids: str
    shown: str | None

    @staticmethod
    def of(table: Table) -> "PromptColumns":
        """`input_ids` if the data set has it, else `prompt`, else `messages`, else `query`; `DataError` if none."""
        shown = next((name for name in ("prompt", "messages", "query") if name in table.columns), None)
        ids = "input_ids" if "input_ids" in table.columns else shown
        if ids is None:
            raise DataError(
                f"{table.label}: it has no column 'prompt', 'messages', 'query' or 'input_ids', only "
                f"{list(table.columns)}. Rename the one that holds the prompts to 'prompt'."
            )
        return PromptColumns(ids, shown)

    @property
    def own(self) -> frozenset[str]:
        """Columns that belong to the prompt itself, all others are passed on to the rewards."""
        return frozenset({"prompt", "input_ids", "attention_mask", self.ids, self.shown or "prompt"})


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

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> "PromptTokenizer":
        """Find out whether the tokenizer ends texts with EOS."""
        eos = tokenizer.eos_token_id
        return PromptTokenizer(
            tokenizer, vocab_size, adds_eos=eos is not None and tokenizer("a")["input_ids"][-1:] == [eos]
        )

    def encode(self, row: Mapping[str, object], column: str) -> Encoded:
        """The ids of the prompt in `column`; raises `BadValueError`."""
        encoded = self._given(row) if column == "input_ids" else self._written(prompt_input(row, column), column)
        if not encoded.ids:
            raise BadValueError(column, row[column], "there is no token", "Take empty prompts out.")
        for token in (min(encoded.ids), max(encoded.ids)):
            if not 0 <= token < self.vocab_size:
                problem = f"id {token} lies outside the policy's vocabulary of {self.vocab_size}"
                raise BadValueError(column, row[column], problem, "Use the tokenizer that belongs to the policy.")
        return encoded

    def _written(self, prompt: PromptInput, column: str) -> Encoded:
        if not isinstance(prompt, str):
            return Encoded(self._chat_ids(prompt, column))
        check_text(prompt, column)
        ids: list[int] = self.tokenizer(prompt, verbose=False)["input_ids"]
        return Encoded(ids[:-1], had_eos=True) if self.adds_eos else Encoded(ids)

    def _chat_ids(self, messages: list[Message], column: str) -> list[int]:
        check_messages(messages, column)
        if self.tokenizer.chat_template is None:
            problem = "these are chat messages, and the tokenizer has no chat template"
            raise BadValueError(column, messages, problem, "Set tokenizer.chat_template, or give prompts as text.")
        try:
            ids: list[int] = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, tokenizer_kwargs={"verbose": False}
            )
        except (TemplateError, TypeError) as error:
            problem = f"the tokenizer's chat template refuses these messages: {error}"
            raise BadValueError(
                column, messages, problem, "Change the messages, or tokenizer.chat_template."
            ) from error
        return ids

    def _given(self, row: Mapping[str, object]) -> Encoded:
        value = value_of(row, "input_ids")
        ids = checked_ids(value, "input_ids")
        if row.get("attention_mask") is not None:
            real = attended(ids, row["attention_mask"], "attention_mask")
            return Encoded(real, had_padding=len(real) < len(ids))
        if ids and self._pad_id in (ids[0], ids[-1]):
            problem = f"there is padding (id {self._pad_id}) at an end, and no attention_mask"
            remedy = "Tokenise with padding=False, or keep the column attention_mask: padding is then taken off."
            raise BadValueError("input_ids", value, problem, remedy)
        return Encoded(ids)

    @property
    def _pad_id(self) -> int | None:
        """The id that is padding and nothing else."""
        pad = self.tokenizer.pad_token_id
        others = (self.tokenizer.eos_token_id, self.tokenizer.bos_token_id, self.tokenizer.unk_token_id)
        return None if pad in others else pad
