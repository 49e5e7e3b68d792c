"""How a reward function that is named in a setting becomes a callable."""

from nearstep.common.errors import RewardError, shorten
from nearstep.common.plugins import load_object
from nearstep.rewards.builtin.spec import meaning, read_spec
from nearstep.rewards.functions import RewardFunction


def load_function(spec: str) -> RewardFunction:
    """The built-in reward of "name:parameter=value", or the callable called `name` in "path/to/file.py:name".

    Of a class in a file it is an instance made without arguments. Raises a ConfigError for an unknown built-in or
    parameter, a RewardError where a file cannot be loaded (see `load_object`) or holds what cannot be called.
    """
    if meaning(spec) == "built-in":
        return read_spec(spec)
    found = load_object(spec, kind="reward function", error=RewardError)
    if not callable(found):
        raise RewardError(f"reward function {spec!r} is {shorten(found)}, which cannot be called.")
    return found
