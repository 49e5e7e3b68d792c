"""Which prompts each update plays: what the sampler draws, the same on every process, and this process's rows of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from nearstep.common.errors import ConfigError
from nearstep.common.random_streams import stream
from nearstep.data.mix import PromptMix
from nearstep.data.prompts import rank_share
from nearstep.data.samplers import Draw, Passes, Sampler, SeesScores, numbers_of
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

    @property
    def rows(self) -> range:
        """This rank's rows of a batch: consecutive ones, as even a share as can be."""
        return rank_share(self.batch_size, self.rank, self.world_size)

    def rows_at(self, places: Sequence[int]) -> list[tuple[int, int]]:
        """Of new prompts for these places of a batch (prompts from 0, ascending), what this rank plays: for each of its
        rows which of the new prompts it answers, and for the how-manieth time."""
        return [
            (number, again)
            for number, place in enumerate(places)
            for again in range(self.num_generations)
            if place * self.num_generations + again in self.rows
        ]

    def played_before(self, update: int) -> int:
        """Prompts that were drawn before an update (from 1), where each before it took one batch."""
        if update < 1:
            raise ValueError(f"updates are counted from 1, not {update}")
        return (update - 1) * self.prompts


@dataclass
class PromptSource:
    """Prompts as a sampler draws them. It knows how many it has drawn since `batches` was called, and no more.

    Several data sets are numbered one after the other, with shares by their weights.
    """

    prompts: PromptMix
    plan: BatchPlan
    sampler: Sampler = field(default_factory=Passes)
    played: int = field(default=0, init=False)  # prompts that the run has drawn, over all ranks
    _drawn: list[int] = field(default_factory=list, init=False, repr=False)  # numbers of the newest draw
    _of_update: dict[int, int] = field(default_factory=dict, init=False, repr=False)  # numbers by place in the run

    def __len__(self) -> int:
        """Number of prompts that there are."""
        return len(self.prompts)

    def batch(self, update: int) -> Prompts:
        """This rank's rows of an update (from 1), where every update before it took one batch."""
        self.played, self._of_update = self.plan.played_before(update), {}
        return self.more(range(self.plan.prompts))

    def batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[Prompts]:
        """The batches of updates `after` + 1 to `until`, each drawn when it is asked for.

        `played` are the prompts that were drawn before; those of `after` batches if not given.
        """
        self.played = self.plan.played_before(after + 1) if played is None else played
        for _ in range(after, until):
            self._of_update = {}
            yield self.more(range(self.plan.prompts))

    def more(self, places: Sequence[int]) -> Prompts:
        """New prompts for some places of the batch, ascending: this rank's rows of them."""
        plan, first = self.plan, self.played
        self._drawn = numbers_of(self.sampler, self._draw(first, len(places)))
        self._of_update |= dict(enumerate(self._drawn, start=first))
        self.played += len(places)
        rows = plan.rows_at(places)
        return self.prompts.take(
            [self._drawn[number] for number, _ in rows],
            [(first + number) * plan.num_generations + again for number, again in rows],
        )

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """Of episodes of the update that runs, played by this process: the numbers of their prompts in the data."""
        return [self._of_update[episode // self.plan.num_generations] for episode in episodes]

    def again(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """The prompts of these numbers once more, one row each."""
        return self.prompts.take(numbers, episodes)

    def seen(self, means: Sequence[float]) -> None:
        """Tell the sampler the mean score of each prompt of the newest draw, over all ranks; NaN where none was
        scored."""
        if isinstance(self.sampler, SeesScores):
            self.sampler.seen(self._drawn, means)

    def notes(self) -> list[str]:
        """What the user should know before the run about how prompts are drawn, one sentence each."""
        needed = self.plan.prompts
        if needed <= len(self):
            return []
        return [f"An update needs {needed} prompts and there are {len(self)}: prompts repeat within every update."]

    def _draw(self, first: int, count: int) -> Draw:
        sizes = tuple(map(len, self.prompts.sets))
        return Draw(count, first, sizes, self.prompts.shares, self.plan.seed, stream(self.plan.seed, "sampler", first))
