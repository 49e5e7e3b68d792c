"""The laws of gates."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nearstep.common.remembering import Measures, Remembers
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.remembering import alias_problem, half_a_memory, log_problem, plain_state
from nearstep.training.gates import FinishedGroups, gate_problem

SIZES = (1, 4)  # responses to a prompt
UNLIKE = 3.0  # by so much more the first rounds score, where it is tried what a gate remembers


def check_gate(gate: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a gate to its laws, in copies of it. Raises ConformanceError with the first that is broken."""
    return hold(f"gate {type(gate).__name__}", gate, LAWS, skip)


def _groups(seed: int, size: int, count: int = 6, *, with_values: bool) -> FinishedGroups:
    """Scores of 0 and 1 and between; a group that scores alike, one with a row that was not scored, one with none."""
    draws = torch.Generator().manual_seed(seed)
    scores = torch.rand(count, size, generator=draws)
    scores[::2] = scores[::2].round()
    scores[1] = 1.0
    scores[2, 0] = torch.nan
    scores[3] = torch.nan
    lengths = torch.randint(1, 9, (count, size), generator=draws)
    values = torch.rand(count, 1, generator=draws).expand(count, size).clone() if with_values else None
    finished = torch.rand(count, size, generator=draws) < 0.5
    return FinishedGroups(scores, scores * 2 - 1, lengths, finished, values, {"low": scores.clone()})


def _cases(gate: Any) -> Iterator[FinishedGroups]:
    for size in SIZES:
        for seed in range(4):
            yield _groups(seed, size, with_values=gate.needs_values)


def _kept(gate: Any, groups: FinishedGroups) -> list[bool]:
    kept: list[bool] = copy.deepcopy(gate).keep(groups).tolist()
    return kept


def _protocol(gate: Any) -> str | None:
    missing = lacks(gate, "gate")
    if missing is None and not isinstance(gate.needs_values, bool):
        return f"needs_values is {gate.needs_values!r}; it is True or False"
    return missing or half_a_memory(gate)


def _one_bool(gate: Any) -> str | None:
    for groups in _cases(gate):
        found: object = copy.deepcopy(gate).keep(groups)
        problem = gate_problem(found, len(groups))
        if problem:
            return problem
    return None


def _repeatable(gate: Any) -> str | None:
    for groups in _cases(gate):
        torch.manual_seed(0)
        once = _kept(gate, groups)
        torch.manual_seed(1)
        again = _kept(gate, groups)
        if once != again:
            return (
                f"for scores {groups.scores.tolist()} it kept {once}, and asked again {again}: processes would differ"
            )
    return None


def _untouched(gate: Any) -> str | None:
    for groups in _cases(gate):
        before = groups.select(torch.arange(len(groups)))
        _kept(gate, groups)
        for name, was in vars(before).items():
            now = vars(groups)[name]
            if isinstance(was, Tensor) and not torch.equal(was.nan_to_num(9), now.nan_to_num(9)):
                return f"keep changed {name} in place"
    return None


def _nothing_scored(gate: Any) -> str | None:
    for groups in _cases(gate):
        if _kept(gate, groups)[3]:
            return "a group of which no response was scored was kept"
    return None


def _few(gate: Any) -> str | None:
    for groups in _cases(gate):
        for rows in ([], [0]):
            part = groups.select(torch.tensor(rows, dtype=torch.long))
            problem = gate_problem(copy.deepcopy(gate).keep(part), len(part))
            if problem:
                return problem
    return None


def _order_of_rows(gate: Any) -> str | None:
    for groups in _cases(gate):
        turned = FinishedGroups(
            groups.scores.flip(1),
            groups.returns.flip(1),
            groups.lengths.flip(1),
            groups.finished.flip(1),
            None if groups.values is None else groups.values.flip(1),
            {name: part.flip(1) for name, part in groups.parts.items()},
        )
        if _kept(gate, groups) != _kept(gate, turned):
            return (
                f"scores {groups.scores.tolist()}: kept {_kept(gate, groups)}, in reverse order {_kept(gate, turned)}"
            )
    return None


def _own_group(gate: Any) -> str | None:
    for groups in _cases(gate):
        whole = _kept(gate, groups)
        alone = [_kept(gate, groups.select(torch.tensor([place])))[0] for place in range(len(groups))]
        if whole != alone:
            return f"scores {groups.scores.tolist()}: kept {whole} together, and {alone} one by one"
    return None


def _round_trip(gate: Any) -> str | None:
    for size, before in ((size, before) for size in SIZES for before in (1, 2)):  # one that alternates, too
        one, other = copy.deepcopy(gate), copy.deepcopy(gate)
        rounds = [_groups(seed, size, with_values=gate.needs_values) for seed in range(4)]
        for groups in rounds[:before]:
            one.keep(replace(groups, scores=groups.scores + UNLIKE, returns=groups.returns + UNLIKE))
        if isinstance(gate, Remembers):
            other.load_state_dict(plain_state(one))
        ours, theirs = ([each.keep(groups).tolist() for groups in rounds[before:]] for each in (one, other))
        if ours != theirs:
            rounds_before = "one round" if before == 1 else "two rounds"
            return (
                f"after {rounds_before} it keeps {ours}, and resumed {theirs}: give it state_dict() and "
                "load_state_dict(state)"
            )
    return None


def _numbers_to_log(gate: Any) -> str | None:
    for groups in _cases(gate):
        measured = copy.deepcopy(gate)
        measured.keep(groups)
        if problem := log_problem(measured.metrics()):
            return problem
    return None


def _own_copy(gate: Any) -> str | None:
    has_state = isinstance(gate, Remembers)
    for size in SIZES if has_state else ():
        rounds, tried = [_groups(seed, size, with_values=gate.needs_values) for seed in range(4)], copy.deepcopy(gate)
        tried.keep(rounds[0])
        if problem := alias_problem(tried, lambda tried=tried, rounds=rounds: [*map(tried.keep, rounds[1:])]):  # type: ignore[misc]
            return problem
    return None


LAWS: tuple[Law[Any], ...] = (
    Law("protocol", "it has needs_values and keep(groups)", _protocol),
    Law("one_bool", "keep gives one bool for each group, whole groups", _one_bool),
    Law("few_groups", "also for one group, and for none", _few),
    Law("repeatable", "the same groups give the same answer on every process", _repeatable),
    Law("inputs_untouched", "nothing is changed in place", _untouched),
    Law("round_trip", "its state goes through JSON, and a resumed run decides as the unbroken one", _round_trip),
    Law("own_copy", "a state that was given does not change any more", _own_copy),
    Law(
        "metrics",
        "what it logs are finite numbers by name",
        _numbers_to_log,
        applies=lambda gate: isinstance(gate, Measures),
    ),
    Law("nothing_scored", "a group of which nothing was scored is dropped", _nothing_scored, False),
    Law("order_of_rows", "the order of the responses in a group does not matter", _order_of_rows, False),
    Law("own_group", "the other groups do not matter", _own_group, False),
)
