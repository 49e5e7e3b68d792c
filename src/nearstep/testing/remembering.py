"""The laws of what an object remembers and logs, which samplers and gates share."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any


def plain_state(found: Any) -> Any:
    """The state of an object as a checkpoint would give it back: through JSON."""
    return json.loads(json.dumps(dict(found.state_dict()), allow_nan=False))


def half_a_memory(found: Any) -> str | None:
    """The problem with an object that saves a state and does not load it, or the other way round."""
    halves = {"state_dict", "load_state_dict"} & set(dir(found))
    return f"it has {halves.pop()} alone: a state is saved and loaded" if len(halves) == 1 else None


def alias_problem(found: Any, go_on: Callable[[], object]) -> str | None:
    """The problem with a state that goes on changing after it was given: a save writes it later."""
    given = found.state_dict()
    then = json.dumps(dict(given), allow_nan=False)
    go_on()
    now = json.dumps(dict(given), allow_nan=False)
    return None if now == then else f"a state that was {then} when it was given is {now} later: return a copy"


def log_problem(metrics: Mapping[Any, Any]) -> str | None:
    """The problem with what it logs."""
    for name, number in metrics.items():
        if not isinstance(name, str) or not math.isfinite(number):
            return f"metrics() holds {name!r}: {number!r}"
    return None
