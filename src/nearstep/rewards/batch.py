"""What a reward sees of a rollout, and what it answers."""

import copy
from dataclasses import dataclass, field
from typing import TypeAlias

from transformers import PreTrainedTokenizerBase

from nearstep.types import Message, PromptInput, Prompts, Rollout

Completion: TypeAlias = str | list[Message]


@dataclass(frozen=True)
class RewardBatch:
    """The episodes to be judged, one entry per row in every list.

    `completions` are texts without the stop token, or, where the prompt is a conversation, one assistant message
    each; `completion_ids` are what the policy chose, its stop token included.
    """

    prompts: list[PromptInput]
    completions: list[Completion]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    finished: list[bool]
    columns: dict[str, list[object]]
    episodes: list[int]
    trainer_state: object = None

    def __len__(self) -> int:
        return len(self.prompts)

    def place(self, row: int) -> str:
        """Name a row in an error message."""
        return f"row {row} of the batch (episode {self.episodes[row]})"

    def span(self) -> str:
        """Name all rows in an error message."""
        return f"rows 0 to {len(self) - 1} of the batch (episodes {self.episodes[0]} to {self.episodes[-1]})"


@dataclass(frozen=True)
class Answer:
    """What a source said of a batch, still unchecked: its values, and what it logged by the way."""

    values: object
    extras: dict[str, list[object]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)


def reward_batch(
    prompts: Prompts, rollout: Rollout, tokenizer: PreTrainedTokenizerBase, trainer_state: object = None
) -> RewardBatch:
    """Decode the responses with the policy's tokenizer, without special tokens and the final stop token."""
    finished = rollout.finished.tolist()
    completion_ids = rollout.completion_ids()
    # The stop token may be an ordinary one ("\n") that the decoder would leave in, so it is cut by position.
    visible = [ids[:-1] if ended else ids for ids, ended in zip(completion_ids, finished, strict=True)]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in visible]
    return RewardBatch(
        # Row by row: a function that edits its prompt must reach neither the data set nor another sample.
        prompts=[copy.deepcopy(prompt) for prompt in prompts.inputs],
        completions=[_completion(text, prompt) for text, prompt in zip(texts, prompts.inputs, strict=True)],
        prompt_ids=rollout.prompt_ids(),
        completion_ids=completion_ids,
        finished=finished,
        columns={name: list(values) for name, values in prompts.columns.items()},
        episodes=prompts.episodes,
        trainer_state=trainer_state,
    )


def _completion(text: str, prompt: PromptInput) -> Completion:
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
