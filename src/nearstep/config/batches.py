"""Which settings say how many episodes a run has, and how many at a time."""

from dataclasses import dataclass

from nearstep.config.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class BatchSettings(Settings):
    """How many episodes, and how many at a time."""

    total_episodes: int | None = option(
        None, "episodes of the run; num_train_epochs passes over the data if not given", at_least=1
    )
    num_train_epochs: float = option(3.0, "passes over the prompts, where total_episodes is not given", above=0)
    per_device_train_batch_size: int = option(
        8, "most rows that a process holds in one forward and backward pass", at_least=1
    )
    gradient_accumulation_steps: int = option(
        1, "only sizes the batch: rows × this × processes, if batch_size is not given", at_least=1
    )
    batch_size: int | None = option(None, "episodes of one update over all processes", at_least=1)
    max_tokens_per_microbatch: int = option(
        16384, "most tokens in one forward and backward pass; limits memory", at_least=1
    )
    local_rollout_forward_batch_size: int = option(64, "rows that a process generates or scores at a time", at_least=1)
