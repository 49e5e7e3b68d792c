"""How many episodes, minibatches and optimizer steps a run has, and how those numbers come about."""

import math
from dataclasses import dataclass

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig


@dataclass(frozen=True)
class BatchSizes:
    """The numbers of a run. A batch is the episodes of one update over all processes."""

    batch: int
    prompts: int
    minibatches: int
    epochs: int
    critic_epochs: int | None  # None: the critic takes every step with the policy
    micro_rows: int
    micro_tokens: int
    updates: int
    world_size: int
    dataset_rows: int | None  # None for a stream, whose number of rows is unknown
    requested_episodes: int

    @property
    def episodes(self) -> int:
        """Episodes of the run: whole batches, so possibly a few more than were asked for."""
        return self.updates * self.batch

    @property
    def steps_per_update(self) -> int:
        """Optimizer steps after each rollout."""
        return self.epochs * self.minibatches

    def table(self) -> list[tuple[str, str, str]]:
        """Name, value, and how the value came about, for the reader of a log."""
        smallest, largest = self.batch // self.minibatches, math.ceil(self.batch / self.minibatches)
        rows = f"{smallest}" if smallest == largest else f"{smallest} or {largest}"
        extra = self.episodes - self.requested_episodes
        more = f", {extra} more than asked for, to fill the last batch" if extra else ""
        return [
            (
                "episodes per update",
                f"{self.batch:,}",
                f"{self.prompts:,} prompts × {self.batch // self.prompts} generations",
            ),
            ("processes", f"{self.world_size}", f"about {math.ceil(self.batch / self.world_size):,} episodes each"),
            ("rows per minibatch", rows, f"{self.batch:,} episodes / {self.minibatches} minibatches"),
            (
                "optimizer steps per update",
                f"{self.steps_per_update}",
                f"{self.epochs} epochs × {self.minibatches} minibatches",
            ),
            (
                "micro-batch",
                f"≤ {self.micro_rows} rows",
                f"and ≤ {self.micro_tokens:,} tokens; only memory depends on it",
            ),
            ("updates", f"{self.updates:,}", f"⌈{self.requested_episodes:,} episodes / {self.batch:,}⌉"),
            ("episodes in all", f"{self.episodes:,}", f"{self._passes()}{more}"),
            *self._critic_rows(),
            ("optimizer steps in all", f"{self.updates * self.steps_per_update:,}", "updates × steps per update"),
        ]

    def passes(self, updates: int) -> float:
        """Passes over the prompts that so many updates make; of a stream the share of the run."""
        return updates * self.prompts / self.dataset_rows if self.dataset_rows is not None else updates / self.updates

    def _passes(self) -> str:
        if self.dataset_rows is None:
            return f"{self.updates * self.prompts:,} prompts of a stream"
        return f"{self.passes(self.updates):.2f} passes over {self.dataset_rows:,} prompts"

    def _critic_rows(self) -> list[tuple[str, str, str]]:
        if self.critic_epochs is None:
            return []
        steps = self.critic_epochs * self.minibatches
        how = f"{self.critic_epochs} epochs × {self.minibatches} minibatches, after the policy"
        return [("critic steps where it trains", f"{steps}", how)]


def batch_sizes(config: PPOConfig, dataset_rows: int | None, world_size: int) -> BatchSizes:
    """Work out the numbers of a run. Raises ConfigError where they are impossible.

    Unlike TRL 1.8, `num_mini_batches` divides the batch whatever `gradient_accumulation_steps` is (defects D1, D2
    there).
    """
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size
    generations = config.num_generations
    batch = config.batch_size if config.batch_size is not None else math.ceil(rows / generations) * generations
    if batch < world_size:
        raise ConfigError(f"batch_size = {batch} leaves processes without work: there are {world_size} of them")
    if config.num_mini_batches > batch:
        raise ConfigError(
            f"num_mini_batches = {config.num_mini_batches} is more than the {batch} episodes of an update. Raise "
            "batch_size, or per_device_train_batch_size × gradient_accumulation_steps."
        )
    if config.total_episodes is not None:
        requested = config.total_episodes
    elif dataset_rows is None:
        raise ConfigError("a streamed data set needs total_episodes: how many rows it has is unknown")
    else:
        requested = max(1, math.floor(config.num_train_epochs * dataset_rows * generations))
    return BatchSizes(
        batch=batch,
        prompts=batch // generations,
        minibatches=config.num_mini_batches,
        epochs=config.num_ppo_epochs,
        critic_epochs=None if config.critic == "joint" else config.num_vf_epochs,
        micro_rows=config.per_device_train_batch_size,
        micro_tokens=config.max_tokens_per_microbatch,
        updates=math.ceil(requested / batch),
        world_size=world_size,
        dataset_rows=dataset_rows,
        requested_episodes=requested,
    )
