"""How a rollout becomes what rewards see, and how places in a text become tokens again."""

import copy

from transformers import PreTrainedTokenizerBase

from nearstep.common.messages import PromptInput
from nearstep.rewards.batch import Completion, RewardBatch
from nearstep.rewards.values import PerSpan, PerToken, Value
from nearstep.types import Prompts, Rollout


def reward_batch(
    prompts: Prompts, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, trainer_state: object = None
) -> RewardBatch:
    """Decode the responses with the policy's tokenizer, without special tokens and the final stop token."""
    finished = rollout.finished.tolist()
    completion_ids = rollout.completion_ids()
    endings = zip(prompts.inputs, completion_ids, finished, strict=True)
    return RewardBatch(
        # Row by row: a function that edits its prompt must reach neither the data set nor another sample.
        prompts=[copy.deepcopy(prompt) for prompt in prompts.inputs],
        completions=[_completion(prompt, ids, ended, tokenizer) for prompt, ids, ended in endings],
        prompt_ids=rollout.prompt_ids(),
        completion_ids=completion_ids,
        finished=finished,
        columns={name: list(values) for name, values in prompts.columns.items()},
        episodes=prompts.episodes,
        trainer_state=trainer_state,
    )


def reward_row(
    prompts: Prompts,
    row: int,
    completion_ids: list[int],
    finished: bool,
    tokenizer: PreTrainedTokenizerBase,
    trainer_state: object = None,
) -> RewardBatch:
    """One row of the same batch alone, for which nothing but its own response is needed."""
    prompt = prompts.inputs[row]
    return RewardBatch(
        prompts=[copy.deepcopy(prompt)],
        completions=[_completion(prompt, completion_ids, finished, tokenizer)],
        prompt_ids=[prompts.ids[row]],
        completion_ids=[completion_ids],
        finished=[finished],
        columns={name: [values[row]] for name, values in prompts.columns.items()},
        episodes=[prompts.episodes[row]],
        trainer_state=trainer_state,
        numbers=(row,),
    )


def per_token(value: Value, ids: list[int], finished: bool, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """The reward of each token of a response; a number or None gives none to any of them.

    The value of a span is shared equally by the tokens that have a part in it, so that its sum is kept.
    """
    rewards = [0.0] * len(ids)
    if isinstance(value, PerToken):
        return list(value.values)
    if isinstance(value, PerSpan):
        text = _Decoded(_visible(ids, finished), tokenizer)
        for start, end, worth in value.values:
            first, last = text.token_at(start), text.token_at(end - 1)
            for token in range(first, last + 1):
                rewards[token] += worth / (last + 1 - first)
    return rewards


class _Decoded:
    """Which token a character of a decoded response belongs to."""

    def __init__(self, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
        self._ids, self._tokenizer = ids, tokenizer
        self._lengths: dict[int, int] = {}

    def token_at(self, character: int) -> int:
        """The first token with which the text reaches beyond `character`, found by halving."""
        low, high = 0, len(self._ids) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._length(middle + 1) > character else (middle + 1, high)
        return low

    def _length(self, tokens: int) -> int:
        """Characters of the first `tokens` tokens."""
        if tokens not in self._lengths:
            self._lengths[tokens] = len(self._tokenizer.decode(self._ids[:tokens], skip_special_tokens=True))
        return self._lengths[tokens]


def _visible(ids: list[int], finished: bool) -> list[int]:
    return ids[:-1] if finished else ids


def _completion(prompt: PromptInput, ids: list[int], finished: bool, tokenizer: PreTrainedTokenizerBase) -> Completion:
    # The stop token may be an ordinary one ("\n") that the decoder would leave in, so it is cut by position.
    text = tokenizer.decode(_visible(ids, finished), skip_special_tokens=True)
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
