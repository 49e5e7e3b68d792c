"""How a learning rate moves over the updates of a run: the policy's course, and the critic's, which may be another."""

from dataclasses import dataclass

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.config.shared import OptimizerSettings


@dataclass(frozen=True)
class LearningRateCourse:
    """Its kind, and the updates over which it rises; stepped once per update, also where a network did not train."""

    kind: str
    warmup_steps: int
    setting: str = "warmup_steps"  # what says so

    @staticmethod
    def of_policy(config: OptimizerSettings) -> "LearningRateCourse":
        """As the settings have it for every network."""
        return LearningRateCourse(config.lr_scheduler_type, config.warmup_steps)

    @staticmethod
    def of_critic(config: PPOConfig) -> "LearningRateCourse":
        """The policy's, but for what the critic has of its own."""
        kind, steps = config.vf_lr_scheduler_type, config.vf_lr_warmup_steps
        return LearningRateCourse(
            config.lr_scheduler_type if kind is None else kind,
            config.warmup_steps if steps is None else steps,
            "warmup_steps" if steps is None else "vf_lr_warmup_steps",
        )

    @property
    def is_constant(self) -> bool:
        """Whether its end does not depend on the length of the run."""
        return self.kind.startswith("constant")

    def notes(self, updates: int) -> list[str]:
        """A sentence where the rate never gets to its peak. Raises ConfigError where it stays at 0."""
        warm_up = 0 if self.kind == "constant" else self.warmup_steps
        if warm_up < max(updates, 1):
            return []
        length = f"which has {updates} update{'s' * (updates > 1)}"
        said = f"{self.setting} = {warm_up} is no shorter than the run, {length}"
        if updates == 1:
            raise ConfigError(f"{said}: its learning rate is 0, and nothing would train")
        return [f"{said}: the learning rate ends at {(updates - 1) / warm_up:.2g} of its peak."]


def moving_courses(config: PPOConfig, *, has_critic: bool) -> str:
    """The kinds of learning rates that depend on the length of the run, in words; empty where there are none."""
    policy, critic = LearningRateCourse.of_policy(config), LearningRateCourse.of_critic(config)
    kinds = [] if policy.is_constant else [policy.kind]
    if has_critic and critic.kind != policy.kind and not critic.is_constant:
        kinds.append(f"the critic's {critic.kind}")
    return ", ".join(kinds)
