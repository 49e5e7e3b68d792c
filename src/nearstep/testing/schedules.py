"""The laws of critic schedules."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.training.schedules import Phase, reweighting_problem

UPDATES = 100


def check_critic_schedule(schedule: Any, *, updates: int = UPDATES, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a critic schedule to its laws over a run of `updates`. Raises ConformanceError with the first broken one.

    A schedule that never trains a critic is one for advantages without a critic; the laws of the critic then say
    nothing. `last_update` is not universal, but without it the saved critic is older than the saved policy.
    """
    return hold(f"critic schedule {type(schedule).__name__}", Course(schedule, updates), LAWS, skip)


@dataclass(frozen=True)
class Course:
    """A schedule and the length of the run."""

    schedule: Any  # a CriticSchedule, as the first law says
    updates: int

    def all(self) -> list[tuple[int, list[Phase]]]:
        """Every update with its phases."""
        return [(update, self.schedule.phases(update)) for update in range(1, self.updates + 1)]

    @property
    def has_critic(self) -> bool:
        """Whether the critic trains at any time."""
        return any(phase.critic for _, phases in self.all() for phase in phases)


def _lists_phases(course: Course) -> str | None:
    for update, phases in course.all():
        if not isinstance(phases, list) or not all(isinstance(phase, Phase) for phase in phases):
            return f"phases({update}) returned {phases!r}"
    return None


def _own_update(course: Course) -> str | None:
    for update, phases in course.all():
        for phase in phases:
            if phase.update != update:
                return f"phases({update}) holds {phase}: its minibatches would be drawn for another update"
    return None


def _work(course: Course) -> str | None:
    for update, phases in course.all():
        for phase in phases:
            if isinstance(phase.epochs, bool) or not isinstance(phase.epochs, int) or phase.epochs < 1:
                return f"phases({update}) holds {phase}: leave out a phase without epochs"
            if not (phase.policy or phase.critic):
                return f"phases({update}) holds {phase}, which trains nothing"
    return None


def _reweighted(course: Course) -> str | None:
    for update, phases in course.all():
        problem = reweighting_problem(phases)
        if problem:
            return f"phases({update}): {problem}"
    return None


def _repeatable(course: Course) -> str | None:
    forwards = dict(course.all())
    for update in range(course.updates, 0, -1):
        again = course.schedule.phases(update)
        if again != forwards[update]:
            return f"phases({update}) was {forwards[update]} and is {again} when asked again: a resumed run asks anew"
    return None


def _policy_trains(course: Course) -> str | None:
    trains = any(phase.policy for _, phases in course.all() for phase in phases)
    return None if trains else f"it does not in {course.updates} updates"


def _last_update(course: Course) -> str | None:
    if not course.has_critic or any(phase.critic for phase in course.schedule.phases(course.updates)):
        return None
    return f"phases({course.updates}), the last, is {course.schedule.phases(course.updates)}"


LAWS: tuple[Law[Course], ...] = (
    Law("protocol", "it has phases(update)", lambda course: lacks(course.schedule, "critic_schedule")),
    Law("lists_phases", "phases returns a list of Phase for every update from 1 on", _lists_phases),
    Law("own_update", "the phases of an update carry its number", _own_update),
    Law("work", "every phase trains something for at least one epoch", _work),
    Law("reweighted", "a critic is reweighted alone, after the policy in the same update", _reweighted),
    Law("repeatable", "an update has the same phases whenever it is asked for", _repeatable),
    Law("policy_trains", "the policy trains at some time", _policy_trains),
    Law("last_update", "where there is a critic, it trains on the last update", _last_update, False),
)
