"""Whether the warm-ups of a run leave it anything to learn."""

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.config.shared import OptimizerSettings
from nearstep.training.batches import BatchSizes


def check_warm_ups(config: PPOConfig, batch: BatchSizes) -> list[str]:
    """What the user should know of warm-ups. Raises ConfigError where the policy would never train."""
    if batch.planned is not None and batch.planned.policy == 0:
        raise ConfigError(
            f"vf_warmup_updates = {config.vf_warmup_updates}: in these only the critic trains, and the run has "
            f"{batch.updates} updates, so the policy would never train. Give fewer, or more total_episodes"
        )
    return learning_rate_notes(config, batch.updates)


def learning_rate_notes(config: OptimizerSettings, updates: int) -> list[str]:
    """A sentence where the learning rate never gets to its peak. Raises ConfigError where it stays at 0."""
    warm_up = 0 if config.lr_scheduler_type == "constant" else config.warmup_steps
    if warm_up < max(updates, 1):
        return []
    said = f"warmup_steps = {warm_up} is no shorter than the run, which has {updates} update{'s' * (updates > 1)}"
    if updates == 1:
        raise ConfigError(f"{said}: its learning rate is 0, and nothing would train")
    return [f"{said}: the learning rate ends at {(updates - 1) / warm_up:.2g} of its peak."]
