"""The laws of samplers."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nearstep.common.random_streams import stream
from nearstep.common.remembering import Measures, Remembers
from nearstep.data.samplers import Draw, SeesScores, draw_problem
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.remembering import alias_problem, half_a_memory, log_problem, plain_state

DATA = (((7,), (7.0,)), ((5, 3), (1.0, 2.0)), ((1,), (1.0,)))  # sizes of the data sets, and their shares
COUNTS = (4, 1, 3, 9)  # prompts of one draw after another; the last may be more than there are
MEANS = (0.0, 0.5, math.nan, 0.25, -3.0, 1.0)
PASSES = 30


def check_sampler(sampler: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a sampler to its laws, in copies of it. Raises ConformanceError with the first that is broken."""
    return hold(f"sampler {type(sampler).__name__}", sampler, LAWS, skip)


@dataclass
class DrawTrial:
    """A copy of a sampler in a made-up run over some data."""

    sampler: Any  # a Sampler, as the first law says
    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    seed: int = 0
    first: int = 0

    def wanted(self, count: int) -> Draw:
        """What the run would ask for now."""
        return Draw(count, self.first, self.sizes, self.shares, self.seed, stream(self.seed, "sampler", self.first))

    def draw(self, count: int) -> list[Any]:
        """What it draws; then it is told how the answers scored."""
        found = list(self.sampler.choose(self.wanted(count)))
        self.first += count
        if isinstance(self.sampler, SeesScores):
            self.sampler.seen(found, [MEANS[(self.first + place) % len(MEANS)] for place in range(len(found))])
        return found


def _trials(sampler: Any) -> Iterator[DrawTrial]:
    for sizes, shares in DATA:
        yield DrawTrial(copy.deepcopy(sampler), sizes, shares)


def _numbers(sampler: Any) -> str | None:
    for trial in _trials(sampler):
        for count in COUNTS:
            wanted = trial.wanted(count)
            problem = draw_problem(trial.draw(count), wanted)
            if problem:
                return f"{problem} (data sets of {trial.sizes} prompts, after {wanted.first} that were drawn)"
    return None


def _repeatable(sampler: Any) -> str | None:
    for one, other in zip(_trials(sampler), _trials(sampler), strict=True):
        torch.manual_seed(0)
        first = [one.draw(count) for count in COUNTS]
        torch.manual_seed(1)
        second = [other.draw(count) for count in COUNTS]
        if first != second:
            return f"two copies drew {first} and {second} from data sets of {one.sizes} prompts: use draw.random alone"
    return None


def _remembers(sampler: Any) -> str | None:
    if isinstance(sampler, SeesScores) and not isinstance(sampler, Remembers):
        return "it has seen(numbers, means) and lacks state_dict() or load_state_dict(state)"
    return half_a_memory(sampler)


def _round_trip(sampler: Any) -> str | None:
    for number in range(1, len(COUNTS)):
        for one, other in zip(_trials(sampler), _trials(sampler), strict=True):
            for count in COUNTS[:number]:
                one.draw(count)
            if isinstance(sampler, Remembers):
                state = plain_state(one.sampler)
                other.sampler.load_state_dict(state)
                if (now := plain_state(other.sampler)) != state:
                    return f"its state was {state}, and after load_state_dict it is {now}"
            other.first = one.first
            ours, theirs = ([trial.draw(count) for count in COUNTS[number:]] for trial in (one, other))
            if ours != theirs:
                return f"after {one.first} prompts the run draws {ours}, and resumed it draws {theirs}"
    return None


def _goes_back(sampler: Any) -> str | None:
    if not isinstance(sampler, Remembers):
        return None
    for trial in _trials(sampler):
        trial.draw(1)
        state, first = plain_state(trial.sampler), trial.first
        once = trial.draw(3)
        trial.sampler.load_state_dict(state)
        trial.first = first
        again = trial.draw(3)
        if once != again:
            return f"it drew {once}, was put back by load_state_dict and drew {again}: an update begun again differs"
    return None


def _numbers_to_log(sampler: Any) -> str | None:
    for trial in _trials(sampler):
        trial.draw(COUNTS[0])
        if problem := log_problem(trial.sampler.metrics()):
            return problem
    return None


def _own_copy(sampler: Any) -> str | None:
    if not isinstance(sampler, Remembers):
        return None
    for trial in _trials(sampler):
        trial.draw(2)
        if problem := alias_problem(trial.sampler, lambda trial=trial: [trial.draw(count) for count in COUNTS]):  # type: ignore[misc]
            return problem
    return None


def _covers(sampler: Any) -> str | None:
    for trial in _trials(sampler):
        prompts = sum(trial.sizes)
        drawn = {number for _ in range(PASSES) for number in trial.draw(prompts)}
        if len(drawn) < prompts:
            missing = sorted(set(range(prompts)) - drawn)
            return f"of {prompts} prompts {missing} came in none of {PASSES} draws of {prompts}"
    return None


LAWS: tuple[Law[Any], ...] = (
    Law("protocol", "it has choose(draw)", lambda sampler: lacks(sampler, "sampler")),
    Law("numbers", "a draw gives as many whole numbers as are wanted, each of a prompt that is there", _numbers),
    Law("repeatable", "the same draws after the same scores give the same numbers", _repeatable),
    Law("remembers", "what it learns from scores has a state that is saved", _remembers),
    Law("round_trip", "a state goes through JSON, and a resumed run draws as the unbroken one", _round_trip),
    Law("own_copy", "a state that was given does not change any more", _own_copy),
    Law("goes_back", "load_state_dict forgets what came later", _goes_back),
    Law(
        "metrics",
        "what it logs are finite numbers by name",
        _numbers_to_log,
        applies=lambda sampler: isinstance(sampler, Measures),
    ),
    Law("covers", "every prompt comes at some time", _covers, False),
)
