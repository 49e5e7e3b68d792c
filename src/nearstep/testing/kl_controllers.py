"""The laws of KL controllers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nearstep.algorithm.kl_controllers import MeasuredKL
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold

UPDATES = 100
KLS = (-0.5, 0.0, 0.01, 1.0, 6.0, 100.0)  # k1 of a few episodes may be below 0
EPISODES = (8, 512)


def check_kl_controller(controller: Any, *, updates: int = UPDATES, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a KL controller to its laws in a run of `updates`. Raises ConformanceError with the first that is broken."""
    return hold(f"KL controller {type(controller).__name__}", Run(controller, updates), LAWS, skip)


@dataclass(frozen=True)
class Run:
    """A controller, and the length of the run."""

    controller: Any  # a KLController, as the first law says
    updates: int

    def moments(self) -> Iterator[MeasuredKL]:
        """Early, in the middle and at the end, with little and much KL."""
        for update in sorted({1, max(self.updates // 2, 1), max(self.updates - 1, 1)}):
            for episodes in EPISODES:
                for kl in KLS:
                    yield MeasuredKL(kl, episodes, update, self.updates)


def _protocol(run: Run) -> str | None:
    return lacks(run.controller, "kl_controller")


def _coefficient(run: Run) -> str | None:
    first = run.controller.first()
    found = _no_coefficient(first, "first()")
    for moment in run.moments():
        found = found or _no_coefficient(run.controller.next(first, moment), f"next({first}, {moment})")
    return found


def _whole_run(run: Run) -> str | None:
    for kl in KLS:
        coefficient = run.controller.first()
        for update in range(1, run.updates):
            coefficient = run.controller.next(coefficient, MeasuredKL(kl, EPISODES[0], update, run.updates))
            found = _no_coefficient(coefficient, f"after update {update}, the KL always {kl:g}, the coefficient")
            if found:
                return found
    return None


def _repeatable(run: Run) -> str | None:
    first = run.controller.first()
    forwards = [run.controller.next(first, moment) for moment in run.moments()]
    moments = list(run.moments())
    for moment, before in reversed(list(zip(moments, forwards, strict=True))):
        again = run.controller.next(first, moment)
        if again != before:
            return f"next({first}, {moment}) was {before} and is {again} when asked again: a resumed run asks anew"
    return None if run.controller.first() == first else f"first() was {first} and is {run.controller.first()}"


def _direction(run: Run) -> str | None:
    first = run.controller.first()
    for low, high in pairwise(KLS):
        less, more = (run.controller.next(first, MeasuredKL(kl, EPISODES[0], 1, run.updates)) for kl in (low, high))
        if more < less:
            return f"after a KL of {high:g} the coefficient is {more:g}, after {low:g} it is {less:g}"
    return None


def _no_coefficient(value: object, what: str) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{what} is {value!r}; return a Python number"
    return None if math.isfinite(value) and value >= 0 else f"{what} is {value}"


LAWS: tuple[Law[Run], ...] = (
    Law("protocol", "it has first() and next(coefficient, measured)", _protocol),
    Law("coefficient", "a coefficient is a finite number from 0 on, whatever the KL", _coefficient),
    Law("whole_run", "it stays one over the whole run", _whole_run),
    Law("repeatable", "the same coefficient and measurement give the same next one", _repeatable),
    Law("direction", "a greater KL never makes the next coefficient smaller", _direction, False),
)
