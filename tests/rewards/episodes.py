"""Rollouts written by hand, for the tests of rewards."""

import torch

from nearstep.rewards.batch import RewardBatch
from nearstep.rewards.decoding import reward_batch
from nearstep.types import PromptInput, Prompts, Rollout
from tests.tiny import byte_tokenizer


def play(
    completions: list[str] | list[list[int]],
    prompts: list[PromptInput] | None = None,
    *,
    finished: list[bool] | None = None,
    stop: int = 256,
    **columns: list[object],
) -> tuple[Prompts, Rollout]:
    """What a policy with the byte tokenizer saw and said; a finished row ends with the stop token."""
    tokenizer = byte_tokenizer()
    inputs = ["Say: "] * len(completions) if prompts is None else prompts
    ended = [True] * len(completions) if finished is None else finished
    prompt_ids = [
        tokenizer(prompt)["input_ids"]
        if isinstance(prompt, str)
        else tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        for prompt in inputs
    ]
    written = [tokenizer(c)["input_ids"] if isinstance(c, str) else c for c in completions]
    said = [ids + [stop] * end for ids, end in zip(written, ended, strict=True)]
    first_episode = 100
    return (
        Prompts(prompt_ids, inputs, columns, list(range(first_episode, first_episode + len(said)))),
        _rollout(prompt_ids, said, ended),
    )


def scored(*arguments, state: object = None, **options) -> RewardBatch:
    """The same, as rewards see it."""
    return reward_batch(*play(*arguments, **options), byte_tokenizer(), state)


def _rollout(prompt_ids: list[list[int]], said: list[list[int]], finished: list[bool]) -> Rollout:
    rows = list(zip(prompt_ids, said, strict=True))
    is_action = [flag for prompt, ids in rows for flag in [False] * len(prompt) + [True] * len(ids)]
    return Rollout(
        tokens=torch.tensor([token for prompt, ids in rows for token in prompt + ids], dtype=torch.long),
        is_action=torch.tensor(is_action, dtype=torch.bool),
        row_lengths=torch.tensor([len(prompt) + len(ids) for prompt, ids in rows]),
        logprobs=torch.zeros(sum(is_action)),
        finished=torch.tensor(finished),
        policy_version=torch.zeros(len(rows), dtype=torch.long),
    )
