"""Whether the warm-ups of a run leave it anything to learn."""

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.config.shared import OptimizerSettings
from nearstep.training.batches import BatchSizes
from nearstep.training.courses import LearningRateCourse


def check_warm_ups(config: PPOConfig, batch: BatchSizes) -> list[str]:
    """What the user should know of warm-ups. Raises ConfigError where the policy, or the critic, would never train."""
    if batch.planned is not None and batch.planned.policy == 0 and not batch.planned.may_end_early:
        raise ConfigError(
            f"vf_warmup_updates = {config.vf_warmup_updates}: in these only the critic trains, and the run has "
            f"{batch.updates} updates, so the policy would never train. Give fewer, or more total_episodes"
        )
    notes = learning_rate_notes(config, batch.updates)
    if batch.planned is not None and batch.planned.policy == 0:
        notes.append(
            f"vf_warmup_updates = {config.vf_warmup_updates} are all of the run's {batch.updates} updates: the policy "
            f"trains only if the critic explains {config.vf_warmup_until} of the returns (vf_warmup_until) before."
        )
    if batch.planned is None or batch.planned.critic == 0:
        return notes
    of_critic = LearningRateCourse.of_critic(config).notes(batch.updates)
    return notes + [f"Of the critic: {note}" for note in of_critic if note not in notes]


def learning_rate_notes(config: OptimizerSettings, updates: int) -> list[str]:
    """A sentence where the learning rate never gets to its peak. Raises ConfigError where it stays at 0."""
    return LearningRateCourse.of_policy(config).notes(updates)
