"""Types and shapes of nearstep, checked as it is called: what jaxtyping's import hook does, at a third of its price.

That hook binds the arguments of each call and checks them twice, also where nothing has a shape. Here a function
without shapes is beartype's alone, and one with shapes is checked once, in one context: a name means one size
throughout. Checks are made when a function is first called, for no test calls all of them. Of the calls within one
test the first are checked, and then every sixteenth: a loop does what it did before. `NEARSTEP_CHECK_EVERY_CALL=1`
checks them all.
"""

import ast
import dataclasses
import functools
import importlib.machinery
import inspect
import os
import sys
import types
import typing
from importlib.util import decode_source

import jaxtyping
from beartype import BeartypeConf, beartype

typed = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
PACKAGE = "nearstep"
DECORATOR = "__checked__"
FIRST = sys.maxsize if os.environ.get("NEARSTEP_CHECK_EVERY_CALL") else 10
THEN_EVERY = 16


@dataclasses.dataclass
class Running:
    test: int = 0  # which one: each begins to count anew


running = Running()


def install() -> None:
    """Check nearstep, which must not have been imported."""
    sys.meta_path.insert(0, Finder())


class Finder(importlib.machinery.PathFinder):
    """Finds the modules of nearstep, and no others."""

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.partition(".")[0] != PACKAGE:
            return None
        spec = super().find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with a decorator on each function, and on each class."""

    def get_code(self, fullname):
        return self.source_to_code(self.get_data(self.path), self.path)  # never what lies compiled without checks

    def source_to_code(self, data, path, *, _optimize=-1):
        tree = ast.parse(decode_source(data), path)
        decorate(tree)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module):
        vars(module)[DECORATOR] = checked
        super().exec_module(module)


def decorate(tree) -> None:
    """Functions of the module and of its classes; those within functions have no shapes."""
    for node in tree.body:
        if isinstance(node, ast.If | ast.Try | ast.With):
            decorate(node)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        place = {"lineno": node.lineno, "col_offset": 0, "end_lineno": node.lineno, "end_col_offset": 0}
        decorator = ast.Name(DECORATOR, ast.Load(), **place)
        if isinstance(node, ast.ClassDef):
            node.decorator_list.insert(0, decorator)  # the last to be called: after dataclass()
            decorate(node)
        else:
            node.decorator_list.append(decorator)  # the first to be called


def checked(target):
    """The function, or the data class, with its checks."""
    if inspect.isgeneratorfunction(target):  # its body runs when the call has returned, and the context is gone
        return jaxtyping.jaxtyped(target, typechecker=beartype)
    if not inspect.isclass(target):
        return with_checks(target)
    if dataclasses.is_dataclass(target) and "__init__" in vars(target):
        target.__init__ = with_checks(target.__init__)
    return target


def with_checks(function):
    """The function, which refuses arguments and results that are not as annotated."""
    checks, test, calls = None, -1, 0

    @functools.wraps(function)
    def sometimes_checked(*given, **named):
        nonlocal checks, test, calls
        __tracebackhide__ = True
        if test != running.test:
            test, calls = running.test, 0
        calls += 1
        if calls > FIRST and calls % THEN_EVERY:
            return function(*given, **named)
        if checks is None:
            checks = always_checked(function)
        return checks(*given, **named)

    return sometimes_checked


def always_checked(function):
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__qualname__, copy.__module__ = function.__qualname__, function.__module__
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = {name: resolved(hint, function) for name, hint in function.__annotations__.items()}
    checks = typed(copy)
    if not any("jaxtyping" in repr(hint) for hint in copy.__annotations__.values()):
        return checks

    def in_context(*given, **named):
        __tracebackhide__ = True
        with jaxtyping.jaxtyped("context"):
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
