"""Which networks train on a rollout, in which order, for how many epochs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Phase:
    """Some epochs over the rollout of `update` in which the policy, the critic, or both take optimizer steps."""

    update: int
    epochs: int
    policy: bool
    critic: bool


@runtime_checkable
class CriticSchedule(Protocol):
    """When the critic trains."""

    def phases(self, update: int) -> list[Phase]:
        """What happens after the rollout of update number `update`, counted from 1."""


@dataclass(frozen=True)
class PolicyOnly:
    """There is no critic."""

    epochs: int

    def phases(self, update: int) -> list[Phase]:
        """One phase that trains the policy."""
        return [Phase(update, self.epochs, policy=True, critic=False)]


@dataclass(frozen=True)
class Decoupled:
    """The critic trains apart, after the policy, on the same frozen targets, on every Nth rollout and on the last.

    Rollouts in between are not kept for it. Source: TRL pull request 5065, first commit, with its defects left out.
    """

    policy_epochs: int
    critic_epochs: int
    every: int
    last_update: int

    def phases(self, update: int) -> list[Phase]:
        """The policy's phase, then the critic's where it is due."""
        phases = [Phase(update, self.policy_epochs, policy=True, critic=False)]
        if update % self.every == 0 or update == self.last_update:
            phases.append(Phase(update, self.critic_epochs, policy=False, critic=True))
        return phases


@dataclass(frozen=True)
class WarmUp:
    """In the first `updates` only the critic trains, for `epochs` passes each; then `schedule` goes on."""

    schedule: CriticSchedule
    updates: int
    epochs: int

    def phases(self, update: int) -> list[Phase]:
        """A critic's phase alone, or those of the schedule."""
        if update <= self.updates:
            return [Phase(update, self.epochs, policy=False, critic=True)]
        return self.schedule.phases(update)


@dataclass(frozen=True)
class Joint:
    """Classic PPO: policy and critic take every step together."""

    epochs: int

    def phases(self, update: int) -> list[Phase]:
        """One phase that trains both."""
        return [Phase(update, self.epochs, policy=True, critic=True)]


@dataclass(frozen=True)
class PlannedSteps:
    """Optimizer steps of a whole run, if none of its updates stops early."""

    policy: int
    critic: int
    critic_only: int  # updates before the policy's first step


def planned_steps(schedule: CriticSchedule, updates: int, minibatches: int) -> PlannedSteps:
    """Count what will happen by asking the schedule for every update."""
    policy = critic = critic_only = 0
    for update in range(1, updates + 1):
        for phase in schedule.phases(update):
            policy += phase.epochs * minibatches * phase.policy
            critic += phase.epochs * minibatches * phase.critic
        critic_only += policy == 0
    return PlannedSteps(policy, critic, critic_only)
