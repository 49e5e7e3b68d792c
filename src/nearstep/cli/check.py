"""`nearstep check`: hold an object of the user's to the laws of its axis."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nearstep.common.errors import ConfigError, shorten
from nearstep.config.kinds import Kind
from nearstep.config.settings import Problem, Settings, accepts_old_names, option

if TYPE_CHECKING:
    from nearstep.testing import CheckResult


@accepts_old_names
@dataclass(frozen=True, kw_only=True)
class CheckOptions(Settings):
    """Settings of the check."""

    object: str | None = option(None, "what to check: path/to/file.py:Name", is_place=True)
    kind: Literal["auto", Kind] = option("auto", "which axis it is for; auto tells it from its members")
    skip: tuple[str, ...] = option((), "laws that it is not held to, by name; those that training relies on stay")
    rows: str | None = option(
        None,
        "reward: samples to score, a jsonl file of objects with prompt, completion and the columns it reads",
        is_place=True,
    )
    updates: int = option(100, "critic_schedule, kl_controller: length of the run in updates", at_least=1)

    def problems(self) -> Iterator[Problem]:
        """Places that are not there."""
        if self.object is None:
            yield Problem("say what to check: nearstep check path/to/file.py:Name", ("object",))
        elif ".py:" not in self.object:
            yield Problem(f"object = {self.object}: write it as path/to/file.py:Name", ("object",))
        if self.rows is not None and not Path(self.rows).is_file():
            yield Problem(f"rows = {self.rows}: no such file", ("rows",))


SECTIONS = (("Check", "object"),)


def run_check(options: CheckOptions) -> None:
    """Print the laws that hold. Raises ConformanceError with the first that does not."""
    from nearstep.common.plugins import load_named

    assert options.object is not None
    found = load_named(options.object, kind="object", error=ConfigError)
    print("\n".join(_check(found, options).lines()))


def _check(found: object, options: CheckOptions) -> "CheckResult":
    """The object under the suite of its kind. Of a class an instance is checked; engines are built by their suite."""
    from nearstep import testing
    from nearstep.common.plugins import made
    from nearstep.rollout.engine import RolloutEngine
    from nearstep.testing.kinds import is_engine_class, kind_of

    is_engine = options.kind == "engine" or (options.kind == "auto" and is_engine_class(found))
    thing = found if is_engine else made(found, f"object {options.object!r}", ConfigError)
    match kind_of(thing) if options.kind == "auto" else options.kind:
        case "trust_region":
            return testing.check_trust_region(thing, skip=options.skip)
        case "advantage":
            return testing.check_advantage(thing, skip=options.skip)
        case "kl_controller":
            return testing.check_kl_controller(thing, updates=options.updates, skip=options.skip)
        case "loss_aggregation":
            return testing.check_loss_aggregation(thing, skip=options.skip)
        case "value_head":
            return testing.check_value_head(thing, skip=options.skip)
        case "correction":
            return testing.check_correction(thing, skip=options.skip)
        case "sampler":
            return testing.check_sampler(thing, skip=options.skip)
        case "gate":
            return testing.check_gate(thing, skip=options.skip)
        case "auxiliary_loss":
            return testing.check_auxiliary_loss(thing, skip=options.skip)
        case "reward":
            rows = {} if options.rows is None else {"rows": _rows(Path(options.rows))}
            return testing.check_reward(thing, skip=options.skip, **rows)
        case "judge":
            return testing.check_judge(thing, skip=options.skip)
        case "critic_schedule":
            return testing.check_critic_schedule(thing, updates=options.updates, skip=options.skip)
        case "backend":
            return testing.check_backend(thing() if callable(thing) else thing, skip=options.skip)
        case "engine":
            if not callable(thing) and not isinstance(thing, RolloutEngine):
                raise ConfigError(
                    f"engine {shorten(thing)}: name its class, an object with its members, or a function that builds "
                    "it from EngineSettings"
                )
            return testing.check_engine(thing, skip=options.skip)


def _rows(file: Path) -> list[dict[str, Any]]:
    """The samples in a file, one JSON object per line. Raises ConfigError with the line that is none."""
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{file}, line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{file}, line {number} is {shorten(row)}; write one object per line")
        rows.append(row)
    return rows
