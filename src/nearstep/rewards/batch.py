"""What a reward source is given of a rollout, and what it returns.

Imports no torch: the processes that run reward functions hold a batch and would pay for it in time and memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from nearstep.common.messages import Message, PromptInput

Completion: TypeAlias = str | list[Message]


@dataclass(frozen=True)
class RewardBatch:
    """The episodes to be scored, one entry per row in every list.

    `completions` are texts without the stop token, or, where the prompt is a conversation, one assistant message
    each; `completion_ids` are what the policy chose, its stop token included. `numbers` are the rows' places in the
    whole batch, where this is a part of it.
    """

    prompts: list[PromptInput]
    completions: list[Completion]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    finished: list[bool]
    columns: dict[str, list[object]]
    episodes: list[int]
    trainer_state: object = None
    numbers: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def text(self, row: int) -> str:
        """The completion of a row as text, whichever form it has."""
        completion = self.completions[row]
        return completion if isinstance(completion, str) else str(completion[-1]["content"])

    def select(self, rows: Sequence[int]) -> "RewardBatch":
        """The given rows alone, which keep their names."""
        return replace(
            self,
            prompts=[self.prompts[row] for row in rows],
            completions=[self.completions[row] for row in rows],
            prompt_ids=[self.prompt_ids[row] for row in rows],
            completion_ids=[self.completion_ids[row] for row in rows],
            finished=[self.finished[row] for row in rows],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
            episodes=[self.episodes[row] for row in rows],
            numbers=tuple(self.number(row) for row in rows),
        )

    @staticmethod
    def joined(rows: Sequence["RewardBatch"]) -> "RewardBatch":
        """Parts of one batch as one part, in the given order; at least one."""
        return replace(
            rows[0],
            prompts=[prompt for part in rows for prompt in part.prompts],
            completions=[completion for part in rows for completion in part.completions],
            prompt_ids=[ids for part in rows for ids in part.prompt_ids],
            completion_ids=[ids for part in rows for ids in part.completion_ids],
            finished=[ended for part in rows for ended in part.finished],
            columns={name: [value for part in rows for value in part.columns[name]] for name in rows[0].columns},
            episodes=[episode for part in rows for episode in part.episodes],
            numbers=tuple(part.number(row) for part in rows for row in range(len(part))),
        )

    def has_the_ids_of(self, other: "RewardBatch") -> bool:
        """Whether both hold the same episodes, token by token, so that one answer serves both."""
        return (self.prompt_ids, self.completion_ids, self.finished, self.episodes) == (
            other.prompt_ids,
            other.completion_ids,
            other.finished,
            other.episodes,
        )

    def number(self, row: int) -> int:
        """The row's place in the whole batch."""
        return row if self.numbers is None else self.numbers[row]

    def place(self, row: int) -> str:
        """Name a row in an error message."""
        return f"row {self.number(row)} of the batch (episode {self.episodes[row]})"

    def span(self) -> str:
        """Name all rows in an error message."""
        if len(self) == 1:
            return self.place(0)
        first, last = self.number(0), self.number(len(self) - 1)
        return f"rows {first} to {last} of the batch (episodes {self.episodes[0]} to {self.episodes[-1]})"


@dataclass(frozen=True)
class Answer:
    """What a source returned for a batch, still unchecked: its values, and what it logged.

    An entry of `values` that is a RewardError says that the source failed on that row and no other.
    """

    values: object
    extras: dict[str, list[object]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
