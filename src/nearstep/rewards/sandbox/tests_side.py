"""Runs the tests of a model's code, where nothing of that code runs, and reports which came to their end.

What a test takes from the code is asked for over a socket. What comes back is data, which the test compares by itself,
or a `Remote`: an object that stayed with the code.
"""

import builtins
import contextlib
import dis
import importlib
import io
import json
import marshal
import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque, dict)}
CONSTRUCTED = {  # by module
    "builtins": ("bytes", "bytearray", "complex", "range"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "datetime": ("datetime", "date", "time", "timedelta"),
}
# Operators of a `Remote`, by their names between underscores and in the module `operator`.
FORWARDED = (
    *("call", "getattr", "setattr", "delattr"),
    *("bool", "len", "iter", "next", "reversed", "getitem", "setitem", "delitem"),
    *("str", "repr", "hash", "int", "float", "index", "abs", "neg", "round"),
)
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")


def run(order: dict[str, Any], trainer: socket.socket, code: socket.socket) -> None:
    """Run the setup, then each test in a process of its own; one that reaches its end has passed."""
    module = sys.modules["__main__"] = ModuleType("__main__")  # where pickle looks for the classes of the setup
    exec(compile(order["setup"], "<setup>", "exec"), vars(module))
    if not code.recv(1):  # it has not run to its end
        return
    for number, test in enumerate(order["tests"]):
        here, there = socket.socketpair()
        with here:
            with there, contextlib.suppress(ConnectionError):  # nobody there: the test hears that at its first question
                socket.send_fds(code, [b"t"], [there.fileno()])
            child = os.fork()
            if child == 0:
                compiled = compile(test, "<test>", "exec")
                exec(compiled, TestGlobals(vars(module), tested_names(compiled, vars(module)), Code(here)))
                sys.stdout.flush()
                trainer.sendall(b"passed %d\n" % number)
                return
            os.waitpid(child, 0)


class TestGlobals(dict[str, Any]):
    """The global names of a test: the setup's, and the code's, asked for each time, for a call may change them."""

    def __init__(self, setup: Mapping[str, Any], tested: set[str], code: "Code") -> None:
        super().__init__({name: value for name, value in setup.items() if name not in tested})
        self._tested, self._code = tested, code

    def __missing__(self, name: str) -> Any:
        if name not in self._tested:
            raise KeyError(name)
        value = self._code.ask("getitem", Remote(self._code, 0), name)
        return importlib.import_module(name) if isinstance(value, ModuleType) else value


def tested_names(test: CodeType, setup: Mapping[str, Any]) -> set[str]:
    """The names of a test that are the code's to define, whatever they mean elsewhere.

    Those that neither test nor setup nor Python define. If there are none, what the setup itself defines, for then it
    is a stub of the code; else builtins, for MBPP asks for a function named `sum`.
    """
    own = {step.argval for step in dis.get_instructions(test) if step.opname == "STORE_NAME"}
    free = _loaded_names(test) - own
    defined = {name: value for name, value in setup.items() if isinstance(value, FunctionType | type)}
    stubs = {name for name, value in defined.items() if value.__module__ == "__main__"}
    return free - setup.keys() - vars(builtins).keys() or free & stubs or free & vars(builtins).keys()


def _loaded_names(code: CodeType) -> set[str]:
    found = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_NAME", "LOAD_GLOBAL")}
    return found.union(*(_loaded_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


class QuestionPickler(pickle.Pickler):
    """What a test asks, with the code's objects by their numbers, and functions of the test as what they run."""

    def persistent_id(self, value: object) -> object:
        """None for what is pickled as it is. Raises PicklingError for a function that would lack its variables."""
        if isinstance(value, Remote):
            return value._number
        if not isinstance(value, FunctionType) or value.__module__ != "__main__":
            return None
        if value.__closure__:
            raise pickle.PicklingError(f"{value.__qualname__} uses variables of the function around it")
        return marshal.dumps(value.__code__), value.__defaults__


class Code:
    """The code, as a test asks it."""

    def __init__(self, end: socket.socket) -> None:
        self._line = end.makefile("rwb")
        self._errors: dict[int, type[BaseException]] = {}

    def ask(self, operation: str, *places: Any, **keywords: Any) -> Any:
        """What an operation on its objects gives; arguments that it changes are changed here too.

        Raises what the code raises, TypeError for what cannot be given to it, and RuntimeError if it has ended.
        """
        body = io.BytesIO()
        try:
            QuestionPickler(body).dump((operation, places, keywords))
        except (pickle.PicklingError, AttributeError) as error:
            raise TypeError(f"this cannot be given to the code: {error}") from None
        self._line.write(body.getvalue())
        self._line.flush()
        answer = self._line.readline()
        if not answer.endswith(b"\n"):
            raise RuntimeError("the process of the code has ended")
        kind, *parts = (self._decode(part) for part in json.loads(answer))
        if kind == "raise":
            raised, arguments, attributes = parts
            raised = raised.__new__(raised, *arguments)  # without __init__, which may want other arguments
            raised.args = arguments
            raised.__dict__.update(attributes)
            raise raised
        result, after = parts
        for old, new in zip((*places, *keywords.values()), after or (), strict=False):
            if isinstance(old, list | bytearray) and new is not None:
                old[:] = new
            elif isinstance(old, dict | set) and new is not None:
                old.clear()
                old.update(new)
        return result

    def _decode(self, said: Any) -> Any:
        if not isinstance(said, list):
            return said
        kind, first, *rest = said
        if kind in CONTAINERS:
            return CONTAINERS[kind](map(self._decode, first))
        module, _, name = kind.partition(".")
        if name in CONSTRUCTED.get(module, ()):
            return vars(importlib.import_module(module))[name](*map(self._decode, said[1:]))
        if kind == "module":
            return ModuleType("of the code")
        if kind == "builtin":
            found = vars(builtins)[first]
            return found if isinstance(found, type) else None
        if kind == "error":
            if first not in self._errors:
                name, bases = rest
                self._errors[first] = type(name, tuple(map(self._decode, bases)), {})
            return self._errors[first]
        return Remote(self, first)


class Remote:
    """An object of the code, as a test sees it.

    Its operators answer with plain data. It is equal to no plain value and in no order with one: the code's __eq__
    is asked about two objects of the code alone, for else it could call anything equal to what a test expects. For the
    same reason it has no arithmetic with plain values, opens no `with`, and is searched by iteration.
    """

    __slots__ = ("_code", "_number")
    _code: Code
    _number: int

    def __init__(self, code: Code, number: int) -> None:
        object.__setattr__(self, "_code", code)
        object.__setattr__(self, "_number", number)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and bool(self._code.ask("isinstance", value, self))


def _forwarded(operation: str) -> Callable[..., Any]:
    return lambda self, *places, **keywords: self._code.ask(operation, self, *places, **keywords)


def _compared(operation: str) -> Callable[[Remote, object], bool]:
    def compare(self: Remote, other: object) -> bool:
        if isinstance(other, Remote):
            return bool(self._code.ask(operation, self, other))
        if other is None and operation in ("eq", "ne"):
            return operation == "ne"
        raise TypeError("an object of the code is compared with a value of the test: compare its plain values")

    return compare


for _name in FORWARDED:
    setattr(Remote, f"__{_name}__", _forwarded(_name))
for _name in COMPARED:
    setattr(Remote, f"__{_name}__", _compared(_name))
