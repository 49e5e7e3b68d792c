"""How a reward function named on the command line, as file.py:name, becomes a callable."""

from nearstep.errors import RewardError, shorten
from nearstep.plugins import load_object
from nearstep.rewards.functions import RewardFunction


def load_function(spec: str) -> RewardFunction:
    """The callable called `name` in "path/to/file.py:name"; of a class, an instance made without arguments.

    Raises a RewardError where it cannot be loaded (see `load_object`) or cannot be called.
    """
    found = load_object(spec, kind="reward function", error=RewardError)
    if not callable(found):
        raise RewardError(f"reward function {spec!r} is {shorten(found)}, which cannot be called.")
    return found
