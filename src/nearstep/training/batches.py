"""How many episodes, minibatches and optimizer steps a run has, and how those numbers come about."""

import math
from dataclasses import dataclass

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.training.schedules import PlannedSteps


@dataclass(frozen=True)
class BatchSizes:
    """The numbers of a run. A batch is the episodes of one update over all processes."""

    batch: int
    prompts: int
    minibatches: int
    micro_rows: int
    micro_tokens: int
    updates: int
    world_size: int
    dataset_rows: int | None  # None for a stream, whose number of rows is unknown
    requested_episodes: int
    planned: PlannedSteps | None = None  # None until it is known when policy and critic train

    @property
    def episodes(self) -> int:
        """Episodes of the run: whole batches, so possibly a few more than were asked for. What is sampled anew for a
        gate is not counted."""
        return self.updates * self.batch

    def table(self) -> list[tuple[str, str, str]]:
        """The four numbers to understand before a run: name, value, and how the value came about."""
        extra = self.episodes - self.requested_episodes
        more = f", {extra} more than asked for" if extra else ""
        where = f", over {self.world_size} processes" if self.world_size > 1 else ""
        return [
            (
                "episodes per update",
                f"{self.batch:,}",
                f"{self.prompts:,} prompts × {self.batch // self.prompts} responses{where}",
            ),
            ("updates", f"{self.updates:,}", f"{self.episodes:,} episodes{more}; {self._passes()}"),
            *self._steps(),
            (
                "rows at a time",
                f"≤ {self.micro_rows}",
                f"and ≤ {self.micro_tokens:,} tokens; only memory depends on it",
            ),
        ]

    def _steps(self) -> list[tuple[str, str, str]]:
        """The policy's optimizer steps, and which the critic takes besides."""
        if (planned := self.planned) is None:
            return []
        smallest, largest = self.batch // self.minibatches, math.ceil(self.batch / self.minibatches)
        rows = f"{smallest}" if smallest == largest else f"{smallest} or {largest}"
        limit, least = (" at most", "≥ ") if planned.may_end_early else ("", "")
        alone = f", alone in the first {planned.critic_only} updates{limit}" if planned.critic_only else ""
        critic = f"; the critic takes {planned.critic:,}{alone}" if planned.critic else ""
        return [("optimizer steps", f"{least}{planned.policy:,}", f"of the policy, on {rows} rows each{critic}")]

    def passes(self, updates: int) -> float:
        """Passes over the prompts that so many updates make; of a stream the share of the run."""
        return updates * self.prompts / self.dataset_rows if self.dataset_rows is not None else updates / self.updates

    def epoch(self, updates: int, prompts: int) -> float:
        """Passes over the prompts after so many updates, which have drawn so many prompts; of a stream the share of the
        run."""
        return prompts / self.dataset_rows if self.dataset_rows is not None else updates / self.updates

    def _passes(self) -> str:
        if self.dataset_rows is None:
            return f"{self.updates * self.prompts:,} prompts of a stream"
        return f"{self.passes(self.updates):.2f} passes over {self.dataset_rows:,} prompts"


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
        micro_rows=config.per_device_train_batch_size,
        micro_tokens=config.max_tokens_per_microbatch,
        updates=math.ceil(requested / batch),
        world_size=world_size,
        dataset_rows=dataset_rows,
        requested_episodes=requested,
    )
