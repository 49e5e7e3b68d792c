"""How a reward model of any family reads an episode: the same ids where tokenizers agree, else text."""

import copy
from functools import cached_property
from itertools import takewhile
from operator import itemgetter
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.errors import RewardError, shorten
from nearstep.rewards.batch import Answer, Completion, RewardBatch
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.types import Message, PromptInput


@runtime_checkable
class Scorer(Protocol):
    """The reward model itself, whatever holds it."""

    def score(self, rows: list[list[int]]) -> Float[Tensor, " rows"]:
        """One score per row of token ids, read at the row's own last token."""


class ModelReward:
    """A reward model as a source of rewards.

    Where its tokenizer is the policy's, it reads the very ids of the rollout. Otherwise it reads text: prompt and
    response tokenised anew, or the conversation under its own chat template. There the end of the response is
    marked only if the response did end, by the template or else by EOS: that is where the model learnt to judge.
    """

    def __init__(
        self,
        name: str,
        scorer: Scorer,
        *,
        tokenizer: PreTrainedTokenizerBase,
        policy: TokenizerIdentity,
        vocabulary_size: int,
        max_length: int | None = None,
    ) -> None:
        """`policy` is the tokenizer that wrote the ids of the rollout; `vocabulary_size` and `max_length` (in tokens,
        None for no limit) are those of the model in `scorer`.
        """
        self.name = name
        self._scorer = scorer
        self._tokenizer = tokenizer
        self._vocabulary_size = vocabulary_size
        self._max_length = max_length
        self._identity = TokenizerIdentity.of(tokenizer)
        self._policy = policy
        self._start, end = _frame(tokenizer)
        # An encoder knows no text without its closing token, which says nothing of whether a response ended.
        self._encoder_end = [] if tokenizer.cls_token_id is None else end

    def for_policy(self, policy: TokenizerIdentity) -> "ModelReward":
        """The same model, for rollouts of a policy with another tokenizer."""
        other = copy.copy(self)
        other._policy = policy
        return other

    def score(self, batch: RewardBatch) -> Answer:
        """Score every row; raises a RewardError naming a row that the model cannot read."""
        rows = [self._read(batch, row) for row in range(len(batch))]
        for row, ids in enumerate(rows):
            self._check(ids, batch.place(row))
        return Answer(self._scorer.score(rows))

    def _read(self, batch: RewardBatch, row: int) -> list[int]:
        """The ids under which the model reads a row."""
        prompt, completion = batch.prompts[row], batch.completions[row]
        same_tokens = self._identity.tokens == self._policy.tokens
        # A missing template does not differ: the ids under the policy's template are then all there is to read.
        same_template = self._identity.chat_template in (None, self._policy.chat_template)
        if same_tokens and (isinstance(prompt, str) or same_template):
            return batch.prompt_ids[row] + batch.completion_ids[row]
        if isinstance(prompt, str) and isinstance(completion, str):
            return self._read_text(prompt + completion, batch.finished[row])
        return self._read_messages(conversation(prompt, completion), batch.finished[row], batch.place(row))

    def _read_text(self, text: str, finished: bool) -> list[int]:
        ids = self._encode(text)
        start = [] if ids[: len(self._start)] == self._start else self._start
        if self._encoder_end:
            return [*start, *ids, *self._encoder_end]
        return start + (self._with_eos(ids) if finished else ids)

    def _read_messages(self, messages: list[Message], finished: bool, place: str) -> list[int]:
        text = self._render(messages, place)
        if not finished:
            return self._encode(text.removesuffix(self._turn_end))
        return self._encode(text) if self._turn_end.strip() else self._with_eos(self._encode(text))

    @cached_property
    def _turn_end(self) -> str:
        """What the chat template puts behind the last message of the assistant."""
        reply = "nearstep-reply"
        probe: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": reply}]
        before, found, end = self._render(probe, "a test conversation").rpartition(reply)
        if not found:
            raise RewardError(
                f"the chat template of reward model {self.name!r} leaves out the reply of the assistant: "
                f"{shorten(before + end)}. Set a chat_template that shows it."
            )
        return end

    def _render(self, messages: list[Message], place: str) -> str:
        if self._tokenizer.chat_template is None:
            raise RewardError(
                f"the tokenizer of reward model {self.name!r} has no chat template, but the prompt of {place} is a "
                "conversation: set its chat_template, or give prompts as text."
            )
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False))
        except TemplateError as error:
            raise RewardError(
                f"the chat template of reward model {self.name!r} refuses the messages of {place}: {error}"
            ) from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _with_eos(self, ids: list[int]) -> list[int]:
        eos = self._tokenizer.eos_token_id
        return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]

    def _check(self, ids: list[int], place: str) -> None:
        if not ids:
            raise RewardError(
                f"reward model {self.name!r} finds nothing to read in {place}: prompt and response are empty."
            )
        if self._max_length is not None and len(ids) > self._max_length:
            raise RewardError(
                f"reward model {self.name!r} reads at most {self._max_length} tokens, but {place} has {len(ids)}: "
                "lower max_prompt_length or response_length, or take a reward model that reads more."
            )
        if max(ids) >= self._vocabulary_size:
            raise RewardError(
                f"reward model {self.name!r} knows {self._vocabulary_size} tokens, but {place} contains token "
                f"{max(ids)}: the tokenizer is not the one that the model was trained with. Load it from the "
                "model's own folder."
            )


def conversation(prompt: PromptInput, completion: Completion) -> list[Message]:
    """Prompt and completion as messages; an answer that the prompt has begun goes on in the same message."""
    before: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    said: list[Message] = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    if not before or before[-1].get("role") != "assistant":
        return [*before, *said]
    begun, first, *rest = before[-1], *said
    return [*before[:-1], {**begun, "content": f"{begun['content']}{first['content']}"}, *rest]


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind any text, such as BOS, CLS and SEP."""
    encoded = tokenizer("a", return_special_tokens_mask=True)
    marked = list(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True))
    start = [token for token, _ in takewhile(itemgetter(1), marked)]
    end = [token for token, _ in takewhile(itemgetter(1), reversed(marked))]
    return start, end[::-1]
