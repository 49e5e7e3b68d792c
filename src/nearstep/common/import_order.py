"""How unsloth comes before the libraries that it changes, and what is said where it is too late for that."""

import os
import sys
from contextlib import redirect_stdout
from importlib import import_module

from nearstep.common.errors import ConfigError
from nearstep.common.plugins import is_installed

CHANGED = ("transformers", "trl", "peft")  # unsloth exchanges parts of them
INSTALL = (
    "pip install 'nearstep[unsloth]', in an environment of its own, for it holds transformers at 5.17 and datasets "
    "below 5 (docs/unsloth.md)"
)


def import_unsloth(setting: str, *, on_cpu: bool) -> None:
    """Import unsloth, unless that is done; `setting` is what asks for it. With `on_cpu` it takes no GPU.

    It sends nothing: the counter of its downloads is off, unless the user's environment says otherwise. Its banner goes
    to standard error. Raises ConfigError where it is not installed, where it came or would come after one of the
    libraries that it changes, and where it cannot be imported.
    """
    if "unsloth" not in sys.modules and not is_installed("unsloth"):
        raise ConfigError(f"{setting}: unsloth is not installed: {INSTALL}")
    earlier = imported_before("unsloth")
    if earlier:
        raise ConfigError(
            f"{setting}: {', '.join(earlier)} came first, and unsloth changes what it finds there only if it is "
            "imported before. Make `import unsloth` the first line of the script; nearstep ppo --model_loader unsloth, "
            'and create_rl_trainer(backend="unsloth") in a script that has imported neither, see to it themselves'
        )
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
    if on_cpu:
        os.environ.setdefault("UNSLOTH_FORCE_CPU", "1")
    try:
        with redirect_stdout(sys.stderr):
            import_module("unsloth")
    except Exception as error:  # of its own many parts, and of its libraries
        said = str(error).strip().split("\n")[0][:300].rstrip(".") or "no reason given"
        raise ConfigError(f"{setting}: unsloth cannot be imported ({type(error).__name__}): {said}") from error


def imported_before(package: str) -> list[str]:
    """The libraries that it changes and that were imported before it; all that are there where it is not yet."""
    order = list(sys.modules)  # in the order in which imports ended: a package's first parts tell when it began
    parts = (place for place, name in enumerate(order) if name == package or name.startswith(f"{package}."))
    return [name for name in CHANGED if name in order[: next(parts, len(order))]]
