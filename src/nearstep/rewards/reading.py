"""How a prompt and its answer become the ids that a reward model reads: in its training and in scoring alike."""

import copy
from collections.abc import Mapping
from functools import cached_property
from itertools import takewhile
from operator import itemgetter

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from nearstep.models.turn_end import turn_end
from nearstep.rewards.batch import Completion
from nearstep.types import Message, PromptInput


class UnreadableError(Exception):
    """An episode that a tokenizer cannot show. Caught where there is a name for the place."""


class EpisodeReader:
    """The reading rules of one tokenizer.

    Text: prompt, then answer, with the special tokens that the tokenizer puts before any text. A conversation: the
    chat template, once. The end of an answer is marked only where it did end: by what the template puts behind it,
    less white space, or else by EOS. An encoder knows no text without its closing token, which says nothing of that.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template_kwargs: Mapping[str, object] | None = None) -> None:
        self._tokenizer, self._template_kwargs = tokenizer, dict(template_kwargs or {})
        self._start, end = _frame(tokenizer)
        self._encoder_end = [] if tokenizer.cls_token_id is None else end

    def of_row(self, template_kwargs: Mapping[str, object]) -> "EpisodeReader":
        """The reader of a row that has keywords for the chat template, which win over those of the settings."""
        if not template_kwargs:
            return self
        other = copy.copy(self)
        other._template_kwargs = {**self._template_kwargs, **template_kwargs}
        vars(other).pop("_turn_end", None)
        return other

    def read(self, prompt: PromptInput, completion: Completion, *, finished: bool) -> list[int]:
        """The ids of an episode. Raises UnreadableError where the chat template is missing or refuses it."""
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._read_text(prompt, completion, finished)
        return self._read_messages(conversation(prompt, completion), finished)

    def split(self, prompt: PromptInput, ids: list[int]) -> tuple[list[int], list[int]]:
        """What `read` gave, as the prompt's ids and those of the answer behind it; all are the answer's if the prompt
        cannot be told apart, as under a template that shows earlier turns otherwise than the last.
        """
        before = self._open(prompt) if isinstance(prompt, str) else self._encode(self._render(prompt, True))
        return (before, ids[len(before) :]) if ids[: len(before)] == before else ([], ids)

    def _read_text(self, prompt: str, completion: str, finished: bool) -> list[int]:
        ids, before = self._open(prompt + completion), self._open(prompt)
        if self._encoder_end:
            return [*ids, *self._encoder_end]
        if ids[: len(before)] != before:  # the border lies inside a token; the policy wrote its answer behind it
            ids = before + self._encode(completion)
        return self._with_eos(ids) if finished else ids

    def _open(self, text: str) -> list[int]:
        ids = self._encode(text)
        return ids if ids[: len(self._start)] == self._start else [*self._start, *ids]

    def _read_messages(self, messages: list[Message], finished: bool) -> list[int]:
        text = self._render(messages)
        end = self._turn_end.rstrip()
        content = text.removesuffix(self._turn_end)
        if not finished:
            return self._encode(content)
        return self._encode(content + end) if end else self._with_eos(self._encode(content))

    @cached_property
    def _turn_end(self) -> str:
        """What the chat template puts behind the last message of the assistant."""
        end = turn_end(self._render)
        if end is None:
            raise UnreadableError(
                "its chat template leaves out the reply of the assistant. Set a chat_template that shows it."
            )
        return end

    def _render(self, messages: list[Message], for_answer: bool = False) -> str:
        if self._tokenizer.chat_template is None:
            raise UnreadableError(
                "its tokenizer has no chat template, but this is a conversation: set its chat_template, or give "
                "prompts as text."
            )
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=for_answer, **self._template_kwargs
                )
            )
        except (TemplateError, TypeError, ValueError) as error:  # what code in a template may raise
            raise UnreadableError(f"its chat template refuses the messages: {error}") from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _with_eos(self, ids: list[int]) -> list[int]:
        eos = self._tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def conversation(prompt: PromptInput, completion: Completion) -> list[Message]:
    """Prompt and completion as messages; an answer that the prompt has begun goes on in the same message."""
    before: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    answer: list[Message] = (
        [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    )
    if not before or before[-1].get("role") != "assistant":
        return [*before, *answer]
    begun, first, *rest = before[-1], *answer
    return [*before[:-1], {**begun, "content": f"{begun.get('content') or ''}{first['content']}"}, *rest]


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind any text, such as BOS, CLS and SEP."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marked = list(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True))
    start = [token for token, _ in takewhile(itemgetter(1), marked)]
    end = [token for token, _ in takewhile(itemgetter(1), reversed(marked))]
    return start, end[::-1]
