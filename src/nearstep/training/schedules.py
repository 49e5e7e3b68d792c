"""Which networks train on a rollout, in which order, for how many epochs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from nearstep.common.errors import shorten


@dataclass(frozen=True)
class RatioBand:
    """Ratios π/π_old with which a state counts in the value loss; those outside are dropped. Source: PACT (2609.26355;
    the limits at second hand)."""

    low: float = 0.0
    high: float = 6.0


@dataclass(frozen=True)
class Phase:
    """Some epochs over the rollout of `update` in which the policy, the critic, or both take optimizer steps.

    With `reweight` the critic trains alone, after the policy has in this update, and its loss at every state is
    weighted by how much more probable the policy's steps have made the action there.
    """

    update: int
    epochs: int
    policy: bool
    critic: bool
    reweight: RatioBand | None = None


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
    With `critic_epochs` = 2 × `policy_epochs` it takes two steps for each of the policy's (SAO, 2607.07508).
    """

    policy_epochs: int
    critic_epochs: int
    every: int
    last_update: int
    reweight: RatioBand | None = None

    def phases(self, update: int) -> list[Phase]:
        """The policy's phase, then the critic's where it is due."""
        phases = [Phase(update, self.policy_epochs, policy=True, critic=False)]
        if update % self.every == 0 or update == self.last_update:
            phases.append(Phase(update, self.critic_epochs, policy=False, critic=True, reweight=self.reweight))
        return phases


@dataclass(frozen=True)
class WarmUp:
    """In the first `updates` only the critic trains, for `epochs` passes each; then `schedule` goes on.

    With `until` it ends early: after the first update whose values explain so much of the variance of the returns.
    """

    schedule: CriticSchedule
    updates: int
    epochs: int
    until: float | None = None

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


def phases_now(schedule: CriticSchedule, update: int, *, critic_is_ready: bool) -> list[Phase]:
    """What happens after the rollout of an update. Once the critic is ready its warm-up is over, wherever it stands."""
    return (without_warm_up(schedule) if critic_is_ready else schedule).phases(update)


def without_warm_up(schedule: CriticSchedule) -> CriticSchedule:
    """What goes on after the warm-up; the schedule itself where it has none."""
    return schedule.schedule if isinstance(schedule, WarmUp) else schedule


def reweighting_problem(phases: Sequence[Phase]) -> str | None:
    """What is wrong with the reweighted phases of an update; None where nothing is."""
    moved = False
    for phase in phases:
        if phase.reweight is not None and not isinstance(phase.reweight, RatioBand):
            return f"reweight is {shorten(phase.reweight)}; it is a RatioBand, or None"
        if phase.reweight is not None and not (phase.critic and not phase.policy and moved):
            return (
                f"{phase} weighs states by what the policy's steps have changed: let the critic train alone there, "
                "after a phase of the policy in the same update"
            )
        if phase.reweight is not None and not phase.reweight.low <= 1 <= phase.reweight.high:
            return f"{phase}: the ratio is 1 where nothing has moved, so low is at most 1 and high at least 1"
        moved = moved or phase.policy
    return None


@dataclass(frozen=True)
class PlannedSteps:
    """Optimizer steps of a whole run, if none of its updates stops early and its warm-up takes all that it may."""

    policy: int
    critic: int
    critic_only: int  # updates before the policy's first step
    may_end_early: bool = False  # those updates are the most


def planned_steps(schedule: CriticSchedule, updates: int, minibatches: int) -> PlannedSteps:
    """Count what will happen by asking the schedule for every update."""
    policy = critic = critic_only = 0
    for update in range(1, updates + 1):
        for phase in schedule.phases(update):
            policy += phase.epochs * minibatches * phase.policy
            critic += phase.epochs * minibatches * phase.critic
        critic_only += policy == 0
    may_end_early = isinstance(schedule, WarmUp) and schedule.until is not None
    return PlannedSteps(policy, critic, critic_only, may_end_early)
