"""Which engine a name, a class, a function or an object stands for."""

import inspect
from collections.abc import Callable, Mapping
from typing import TypeAlias

from nearstep.common.errors import ConfigError, shorten
from nearstep.common.plugins import load_named
from nearstep.rollout.continuous_batching import make_continuous_batching
from nearstep.rollout.engine import Capabilities, EngineSettings, RolloutEngine
from nearstep.rollout.transformers_engine import TransformersEngine
from nearstep.rollout.vllm.in_process import make_vllm
from nearstep.rollout.vllm.server import make_vllm_server

MakeEngine: TypeAlias = Callable[[EngineSettings], object]

# Every name of config.axes has its line here; a test compares the two.
ENGINES: Mapping[str, MakeEngine] = {
    "transformers": TransformersEngine,
    "continuous_batching": make_continuous_batching,
    "vllm": make_vllm,
    "vllm_server": make_vllm_server,
}
MEMBERS = ("capabilities", "load", "generate", "close")


def make_engine(given: object, settings: EngineSettings) -> RolloutEngine:
    """The engine that `given` stands for: a name in ENGINES, `file.py:Name`, a class or function, or an object.

    A class or function is called with `settings`; an object is taken as it is. Raises ConfigError for anything else,
    with the member that is missing.
    """
    what = f"engine {given if isinstance(given, str) else shorten(given)}"
    found = given
    if isinstance(given, str):
        found = ENGINES[given] if given in ENGINES else load_named(given, kind="engine", error=ConfigError)
    if not inspect.isclass(found) and isinstance(found, RolloutEngine):
        return _checked(found, what)
    if not callable(found):
        raise ConfigError(f"{what}: {_lacks(found)}. Give an object, or a class or function of EngineSettings")
    try:
        engine: object = found(settings)
    except ConfigError:  # it says itself what is missing
        raise
    except Exception as cause:
        raise ConfigError(
            f"{what} could not be built from EngineSettings ({type(cause).__name__}: {shorten(cause)}). It is called "
            "with them as its only argument"
        ) from cause
    if not isinstance(engine, RolloutEngine):
        raise ConfigError(f"{what} built {shorten(engine)}: {_lacks(engine)}")
    return _checked(engine, what)


def _checked(engine: RolloutEngine, what: str) -> RolloutEngine:
    can: object = engine.capabilities()
    if not isinstance(can, Capabilities):
        raise ConfigError(f"{what}: capabilities() gave {shorten(can)}; return nearstep.rollout.engine.Capabilities")
    _require_call(engine.load, ("policy", "version"), f"{what}: load")
    _require_call(engine.generate, ("prompts", "settings", "row_ended"), f"{what}: generate")
    return engine


def _require_call(method: Callable[..., object], arguments: tuple[str, ...], what: str) -> None:
    """It takes these arguments by position, whatever it calls them; else the run would end at its first rollout."""
    try:
        signature = inspect.signature(method)
    except ValueError:  # some that are written in C tell nothing of theirs
        return
    try:
        signature.bind(*arguments)
    except TypeError as cause:
        raise ConfigError(f"{what}{signature} cannot be called with ({', '.join(arguments)}): {cause}") from cause


def _lacks(found: object) -> str:
    missing = [name for name in MEMBERS if name not in dir(found)]
    return f"it is no engine, for it has no {', '.join(missing)}"
