"""What a prompt is: text or the messages of a conversation, and the ids that it becomes.

Standard library only: processes that run reward functions know prompts and need no torch.
"""

from dataclasses import dataclass
from typing import TypeAlias

Message: TypeAlias = dict[str, object]
PromptInput: TypeAlias = str | list[Message]


@dataclass(frozen=True)
class Prompts:
    """One row per episode to generate: with n samples per prompt a prompt stands here n times in a row.

    `ids` are the prompt's token ids, `inputs` what the data set had as its prompt (text, or chat messages; decoded text
    where it had ids), `columns` every other column of the data set, `episodes` the number of each row in the whole run,
    from which its random stream is derived.
    """

    ids: list[list[int]]
    inputs: list[PromptInput]
    columns: dict[str, list[object]]
    episodes: list[int]

    def __len__(self) -> int:
        return len(self.ids)
