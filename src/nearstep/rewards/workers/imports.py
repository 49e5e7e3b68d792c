"""What a reward function imports while it runs is imported when it is loaded, so that no row's clock pays for it."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from contextlib import suppress


def import_ahead(function: Callable[..., object]) -> None:
    """Run the import statements inside a function, or the class of a callable object, and inside what it names.

    Functions and classes of its own module are followed, other modules are not. An import that fails here is left to
    the row that needs it.
    """
    waiting: list[object] = [function]
    seen: set[int] = set()
    while waiting:
        part = _definition(waiting.pop())
        module = inspect.getmodule(part)
        if module is None or id(part) in seen:
            continue
        seen.add(id(part))
        for node in ast.walk(_source(part)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                with suppress(Exception):
                    exec(compile(ast.Module([node], []), module.__name__, "exec"), {**vars(module)})
            elif isinstance(node, ast.Name):
                named = vars(module).get(node.id)
                if (inspect.isroutine(named) or inspect.isclass(named)) and inspect.getmodule(named) is module:
                    waiting.append(named)


def _definition(part: object) -> Callable[..., object]:
    """The function or class in which the code of a callable stands."""
    while isinstance(part, functools.partial):
        part = part.func
    if inspect.ismethod(part):
        return type(part.__self__)
    return inspect.unwrap(part) if inspect.isroutine(part) or inspect.isclass(part) else type(part)


def _source(part: Callable[..., object]) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(part)))
    except (OSError, TypeError, SyntaxError):  # built in, or written where no file is
        return ast.Module([], [])
