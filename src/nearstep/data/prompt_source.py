"""Which prompts each update plays: a pure function of seed and update number."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from nearstep.common.errors import ConfigError
from nearstep.common.random_streams import stream
from nearstep.data.mix import PromptMix, weighted_round_robin_between
from nearstep.data.prompts import rank_share
from nearstep.types import Prompts


@dataclass(frozen=True)
class BatchPlan:
    """What an update plays over all ranks: `batch_size` episodes, every prompt `num_generations` times in a row."""

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

    @property
    def prompts(self) -> int:
        """Prompts of an update, over all ranks."""
        return self.batch_size // self.num_generations

    def episodes(self, update: int) -> range:
        """This rank's episodes of an update (from 1): consecutive ones, as even a share as can be."""
        if update < 1:
            raise ValueError(f"updates are counted from 1, not {update}")
        first = (update - 1) * self.batch_size
        share = rank_share(self.batch_size, self.rank, self.world_size)
        return range(first + share.start, first + share.stop)

    def places(self, episodes: Sequence[int]) -> list[int]:
        """The place of each episode's prompt among all prompts of the run."""
        return [episode // self.num_generations for episode in episodes]


@dataclass(frozen=True)
class PromptSource:
    """Endless passes over prompts, each in an order of its own; batches run on over the end of a pass.

    Several sets of prompts take turns by their weights, and each has passes of its own.
    """

    prompts: PromptMix
    plan: BatchPlan
    shuffle: bool = True
    # The orders that the newest batch needed, by set and pass: a pass is shuffled once, not for every batch.
    _orders: dict[tuple[int, int], Sequence[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of prompts in one pass."""
        return len(self.prompts)

    def batch(self, update: int) -> Prompts:
        """This rank's rows of an update (from 1)."""
        episodes = self.plan.episodes(update)
        places = self.plan.places(episodes)
        if not places:
            return self.prompts.take([], [])
        drawn = weighted_round_robin_between(self.prompts.shares, places[0], places[-1] - places[0] + 1)
        starts = self.prompts.starts
        passes = [(place, *divmod(count, len(self.prompts.sets[place]))) for place, count in drawn]
        orders = self._orders_of({(place, number) for place, number, _ in passes})
        numbers = [starts[place] + orders[place, number][index] for place, number, index in passes]
        return self.prompts.take([numbers[place - places[0]] for place in places], episodes)

    def batches(self, *, after: int, until: int) -> Iterator[Prompts]:
        """The batches of updates `after` + 1 to `until`."""
        return (self.batch(update) for update in range(after + 1, until + 1))

    def notes(self) -> list[str]:
        """What the user should know before the run about how prompts are drawn, one sentence each."""
        needed = self.plan.prompts
        if needed <= len(self):
            return []
        return [f"An update needs {needed} prompts and there are {len(self)}: prompts repeat within every update."]

    def _orders_of(self, keys: set[tuple[int, int]]) -> dict[tuple[int, int], Sequence[int]]:
        """The orders of these passes; those that are no longer asked for are let go."""
        orders = {key: self._orders[key] if key in self._orders else self._order(*key) for key in keys}
        self._orders.clear()
        self._orders.update(orders)
        return orders

    def _order(self, place: int, number: int) -> Sequence[int]:
        """The order of a set's prompts in one of its passes."""
        count = len(self.prompts.sets[place])
        if not self.shuffle:
            return range(count)
        position = (number,) if place == 0 else (number, place)
        order = torch.randperm(count, generator=stream(self.plan.seed, "prompts", *position))
        return array("q", order.numpy().tobytes())  # 8 bytes for each prompt, and plain ints when read
