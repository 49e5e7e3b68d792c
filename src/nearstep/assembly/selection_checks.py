"""Whether a sampler or a gate of the user's fits, tried on what is made up, before any training."""

import copy
import math

import torch

from nearstep.assembly.axis_checks import require_members, require_none, try_out
from nearstep.common.errors import ConfigError, shorten
from nearstep.common.random_streams import stream
from nearstep.common.remembering import Remembers
from nearstep.data.samplers import Draw, Sampler, SeesScores, draw_problem
from nearstep.training.gates import FinishedGroups, Gate, gate_problem


def fitting_sampler(found: object, what: str) -> Sampler:
    """The object, of which a copy draws a few prompts. Raises ConfigError where it is no sampler, or would forget what
    it has seen."""
    require_members(found, what, ("choose",), "it needs choose(draw)")
    assert isinstance(found, Sampler)
    _require_memory(found, what, sees=isinstance(found, SeesScores))
    tried = try_out(what, lambda: copy.deepcopy(found), "when it was copied, to be tried apart from the run")
    for first in (0, 4):
        draw = Draw(4, first, (3, 2), (3.0, 2.0), 0, stream(0, "sampler", first))
        numbers = try_out(what, lambda draw=draw: list(tried.choose(draw)))  # type: ignore[misc]
        require_none(what, draw_problem(numbers, draw))
        if isinstance(tried, SeesScores):
            try_out(what, lambda numbers=numbers: tried.seen(numbers, [0.0, 1.0, math.nan, 0.5]))  # type: ignore[misc]
    return found


def fitting_gate(found: object, what: str, group_size: int) -> Gate:
    """The object, of which a copy is tried on three groups. Raises ConfigError where it is no gate."""
    members, needs = ("needs_values", "keep"), "it needs needs_values (true or false) and keep(groups)"
    require_members(found, what, members, needs)
    assert isinstance(found, Gate)
    if not isinstance(found.needs_values, bool):
        raise ConfigError(f"{what}: needs_values is {shorten(found.needs_values)}; it is True or False")
    _require_memory(found, what, sees=False)
    tried = try_out(what, lambda: copy.deepcopy(found), "when it was copied, to be tried apart from the run")
    groups = made_up_groups(group_size, with_values=found.needs_values)
    kept: object = try_out(what, lambda: tried.keep(groups))
    require_none(what, gate_problem(kept, len(groups)))
    return found


def made_up_groups(group_size: int, *, with_values: bool) -> FinishedGroups:
    """Three groups: scores that rise, scores that are alike, and none."""
    rising = torch.linspace(0, 1, group_size)
    scores = torch.stack([rising, torch.ones(group_size), torch.full((group_size,), torch.nan)])
    lengths = torch.full(scores.shape, 3)
    values = torch.full_like(scores, 0.5) if with_values else None
    return FinishedGroups(scores, scores.clone(), lengths, lengths > 0, values)


def _require_memory(found: object, what: str, *, sees: bool) -> None:
    """What an object learns must be saved, or a resumed run would be another one."""
    halves = {"state_dict", "load_state_dict"} & set(dir(found))
    if len(halves) == 1 or (sees and not isinstance(found, Remembers)):
        raise ConfigError(
            f"{what} (a {type(found).__name__}) lacks state_dict() or load_state_dict(state): what it has seen would "
            "be lost where a run goes on from a checkpoint; see docs/extending.md"
        )
