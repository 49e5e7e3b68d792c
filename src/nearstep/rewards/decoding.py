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
    """Decode the responses with the policy's tokenizer; see `completion_text`."""
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


def completion_text(ids: list[int], finished: bool, tokenizer: PreTrainedTokenizerBase) -> str:
    """A response as rewards are given it and records show it: without its stop token, BOS, EOS and PAD.

    Other special tokens stay: marks of thinking, of tools, of another's turn are what a reward may look for.
    """
    # The stop token may be an ordinary one ("\n") that the decoder would leave in, so it is cut by position.
    seen, hidden = ids[:-1] if finished else ids, _hidden(tokenizer)
    return str(tokenizer.decode([token for token in seen if token not in hidden], skip_special_tokens=False))


def _hidden(tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, ...]:
    return (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def per_token(value: Value, ids: list[int], finished: bool, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """The reward of each token of a response; a number or None gives none to any of them.

    The value of a span is shared equally by the tokens that have a part in it, so that its sum is kept.
    """
    rewards = [0.0] * len(ids)
    if isinstance(value, PerToken):
        return list(value.values)
    if isinstance(value, PerSpan):
        text = _Decoded(ids[:-1] if finished else ids, tokenizer)
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
            self._lengths[tokens] = len(completion_text(self._ids[:tokens], False, self._tokenizer))
        return self._lengths[tokens]


def _completion(prompt: PromptInput, ids: list[int], finished: bool, tokenizer: PreTrainedTokenizerBase) -> Completion:
    text = completion_text(ids, finished, tokenizer)
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
