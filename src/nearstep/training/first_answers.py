"""What a policy answered in its first update, as ids: a checkpoint holds them, and their prompts come from the data."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from nearstep.types import Prompts, Rollout


@dataclass(frozen=True)
class FirstAnswers:
    """Answers of update 1 over all processes, on the CPU; those of a process stand side by side."""

    numbers: Int[Tensor, " rows"]  # of their prompts, as the data knows them
    episodes: Int[Tensor, " rows"]
    tokens: Int[Tensor, " tokens"]
    is_action: Bool[Tensor, " tokens"]
    row_lengths: Int[Tensor, " rows"]
    finished: Bool[Tensor, " rows"]
    shares: Int[Tensor, " processes"]  # rows of each process

    @staticmethod
    def of(numbers: Sequence[int], prompts: Prompts, rollout: Rollout) -> "FirstAnswers":
        """Those of one process, an episode in each row; `numbers` are those of the prompts."""
        return FirstAnswers(
            torch.tensor(numbers, dtype=torch.long),
            torch.tensor(prompts.episodes, dtype=torch.long),
            rollout.tokens.cpu(),
            rollout.is_action.cpu(),
            rollout.row_lengths.cpu(),
            rollout.finished.cpu(),
            torch.tensor([len(rollout)]),
        )

    @staticmethod
    def joined(parts: Sequence["FirstAnswers"]) -> "FirstAnswers":
        """Those of several processes, in the order of ranks."""
        return FirstAnswers(*(torch.cat([vars(part)[each.name] for part in parts]) for each in fields(FirstAnswers)))

    def rows(self, rank: int, processes: int) -> list[int]:
        """The rows of a process: those it had, or an even share where the run had another number of processes."""
        every = torch.arange(len(self.row_lengths))
        if len(self.shares) == processes:
            return list(map(int, every.split(self.shares.tolist())[rank]))
        return list(map(int, every.tensor_split(processes)[rank]))

    def rollout(self, rows: Sequence[int], device: torch.device) -> Rollout:
        """Some of the answers as a rollout; nobody knows their log-probs any more, which are 0."""
        whole = Rollout(
            self.tokens,
            self.is_action,
            self.row_lengths,
            torch.zeros(int(self.is_action.sum())),
            self.finished,
            torch.ones_like(self.row_lengths),
        )
        chosen = whole.select(torch.tensor(rows, dtype=torch.long))
        return Rollout(
            chosen.tokens.to(device),
            chosen.is_action.to(device),
            chosen.row_lengths.to(device),
            chosen.logprobs.to(device),
            chosen.finished.to(device),
            chosen.policy_version.to(device),
        )
