"""Types and shapes of nearstep, checked at every call: jaxtyping's import hook, at half of its price.

The hook puts `jaxtyping.jaxtyped(typechecker=beartype)` on every function. That binds the arguments of each call, and
checks them twice, also where nothing has a shape: 45 % of what the tests of training cost. Here a function without
shapes is beartype's alone, and one with shapes is checked once, in one context: a name means one size throughout.
"""

import dataclasses
import functools
import inspect
import types
import typing

import jaxtyping
from beartype import BeartypeConf, beartype

typed = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
THEIRS = jaxtyping.jaxtyped


def install() -> None:
    """Check nearstep, which must not have been imported; should the hook come to use another name, it is slow again."""
    jaxtyping.install_import_hook("nearstep", "beartype.beartype")
    jaxtyping.jaxtyped = lambda *, typechecker: functools.partial(checked, typechecker=typechecker)


def checked(target, *, typechecker):
    """The function, or the data class, with its checks."""
    if inspect.isgeneratorfunction(target):  # its body runs when the call has returned, and the context is gone
        return THEIRS(target, typechecker=typechecker)
    if not inspect.isclass(target):
        return with_checks(target)
    if dataclasses.is_dataclass(target) and "__init__" in vars(target):
        target.__init__ = with_checks(target.__init__)
    return target


def with_checks(function):
    """The function, which refuses arguments and results that are not as annotated."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {name: resolved(hint, function) for name, hint in function.__annotations__.items()}
    checks = functools.update_wrapper(typed(copy), function)
    if not any("jaxtyping" in repr(hint) for hint in copy.__annotations__.values()):
        return checks

    @functools.wraps(function)
    def in_context(*given, **named):
        __tracebackhide__ = True
        with THEIRS("context"):
            return checks(*given, **named)

    return in_context


def resolved(hint, function):
    """An annotation without names in quotes; Any where a name means nothing when the tests run."""
    if "'" not in repr(hint):
        return hint

    def holder(value: hint): ...

    try:
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)["value"]
    except NameError:
        return typing.Any
