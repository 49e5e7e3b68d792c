"""Which prompts each update plays: a pure function of seed and update number."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nearstep.data.prompts import PromptSet, rank_share
from nearstep.errors import ConfigError
from nearstep.streams import stream
from nearstep.types import Prompts


@dataclass(frozen=True)
class PromptSource:
    """Endless passes over a prompt set, each in an order of its own; batches run on over the end of a pass.

    `batch_size` counts episodes of one update over all ranks. Every prompt is played `num_generations` times in a row.
    """

    prompts: PromptSet
    seed: int
    batch_size: int
    num_generations: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size % self.num_generations != 0:
            raise ConfigError(
                f"batch_size = {self.batch_size} must be a multiple of num_generations = {self.num_generations}"
            )

    def __len__(self) -> int:
        """Number of prompts in one pass."""
        return len(self.prompts)

    def batch(self, update: int) -> Prompts:
        """This rank's rows of an update (from 1): consecutive episodes, as even a share as can be."""
        if update < 1:
            raise ValueError(f"updates are counted from 1, not {update}")
        first = (update - 1) * self.batch_size
        share = rank_share(self.batch_size, self.rank, self.world_size)
        episodes = range(first + share.start, first + share.stop)
        passes = [divmod(episode // self.num_generations, len(self)) for episode in episodes]
        orders = {number: self._order(number) for number in {number for number, _ in passes}}
        return self.prompts.take([orders[number][place] for number, place in passes], episodes)

    def batches(self, *, after: int, until: int) -> Iterator[Prompts]:
        """The batches of updates `after` + 1 to `until`."""
        return (self.batch(update) for update in range(after + 1, until + 1))

    def notes(self) -> list[str]:
        """What the user should know before the run about how prompts are drawn, one sentence each."""
        needed = self.batch_size // self.num_generations
        if needed <= len(self):
            return []
        return [f"An update needs {needed} prompts and there are {len(self)}: prompts repeat within every update."]

    def _order(self, number: int) -> list[int]:
        order: list[int] = torch.randperm(len(self), generator=stream(self.seed, "prompts", number)).tolist()
        return order
