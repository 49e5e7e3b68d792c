"""Runs the code of a model, then does what its tests ask for. Nothing in this process is trusted or secret.

Tests ask by pickles and are answered in lines of JSON: scalars as they are, all else as [kind, ...].
"""

import builtins
import contextlib
import json
import marshal
import operator
import os
import pickle
import socket
import sys
from collections import deque
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, BinaryIO

OPERATIONS = vars(operator) | vars(builtins)
PLAIN = (bool, int, float, str, type(None))
SCALARS: dict[type, Callable[[Any], object]] = {int: int.__int__, float: float.__float__, str: str.__str__}
CONTAINERS = (list, tuple, set, frozenset, deque, dict)
REDUCED = {  # by module
    "builtins": ("bytearray", "range"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "datetime": ("datetime", "date", "time", "timedelta"),
}
MUTABLE = (list, dict, set, bytearray)


def run(order: dict[str, Any], trainer: socket.socket, tests: socket.socket) -> None:
    """Run the code as a main program, then let each test ask a copy of this process, so that none disturbs another."""
    module = sys.modules["__main__"] = ModuleType("__main__")
    try:
        exec(compile(order["code"], "<code>", "exec"), vars(module))
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            sys.exit(f"SystemExit: {leaving.code}")
    sys.stdout.flush()
    with contextlib.suppress(ConnectionError):  # there are no tests, or they have ended
        tests.sendall(b"ran")
        while ends := socket.recv_fds(tests, 1, 1)[1]:
            child = os.fork()
            if child == 0:
                with socket.socket(fileno=ends[0]).makefile("rwb") as line, contextlib.suppress(EOFError):
                    Answers(line, module).serve()  # type: ignore[arg-type]
                return
            os.close(ends[0])
            os.waitpid(child, 0)


class QuestionUnpickler(pickle.Unpickler):
    """What a test asks, with the objects that it knows by their numbers, and functions that it gives."""

    def __init__(self, line: BinaryIO, kept: list[Any]) -> None:
        super().__init__(line)
        self._kept = kept

    def persistent_load(self, reference: Any) -> Any:
        """The object with a number, or a function made anew, to which the names of the code are global."""
        if isinstance(reference, int):
            return self._kept[reference]
        code, defaults = reference
        return FunctionType(marshal.loads(code), self._kept[0], None, defaults)


class Answers:
    """Does what a test asks for, on objects that stay here and that the test knows by their numbers."""

    def __init__(self, line: BinaryIO, module: ModuleType) -> None:
        self._line = line
        self._kept: list[Any] = [vars(module)]  # which also keeps their ids from being used again
        self._numbers: dict[int, int] = {}

    def serve(self) -> None:
        """Answer until the test has ended. Raises EOFError then."""
        while True:
            operation, places, keywords = QuestionUnpickler(self._line, self._kept).load()
            try:
                answer = ["return", *self._do(OPERATIONS[operation], places, keywords)]
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it goes on in the test
                answer = ["raise", *(self._encode(part) for part in (type(error), error.args, vars(error)))]
            self._line.write(json.dumps(answer).encode() + b"\n")
            self._line.flush()

    def _do(self, function: Callable[..., object], places: Any, keywords: Any) -> tuple[object, object]:
        """The result, and what has become of the arguments, or None if they are as they were."""
        given = [*places, *keywords.values()]
        before = [self._encode(value) if type(value) in MUTABLE else None for value in given]
        result = self._encode(function(*places, **keywords))
        after = [self._encode(value) if type(value) in MUTABLE else None for value in given]
        return result, ["tuple", after] if after != before else None

    def _encode(self, value: Any) -> object:
        kind: type = type(value)
        if kind in PLAIN:
            return value
        for scalar, plain in SCALARS.items():
            if isinstance(value, scalar):  # of a class of its own; as what it compares
                return plain(value)
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            return self._encode(value.tolist())
        for container in CONTAINERS:
            if isinstance(value, container):
                entries = value.items() if isinstance(value, dict) else value
                return [container.__name__, [e if type(e) in PLAIN else self._encode(e) for e in entries]]
        if kind is bytes:
            return ["builtins.bytes", value.decode("latin-1"), "latin-1"]
        if kind is complex:
            return ["builtins.complex", value.real, value.imag]
        if kind.__name__ in REDUCED.get(kind.__module__, ()):
            return [f"{kind.__module__}.{kind.__name__}", *(self._encode(part) for part in value.__reduce__()[1])]
        if isinstance(value, type):
            return self._encode_type(value)
        return ["module" if kind is ModuleType else "object", self._number(value)]

    def _encode_type(self, kind: type) -> object:
        if vars(builtins).get(kind.__name__) is kind:
            return ["builtin", kind.__name__]
        if issubclass(kind, BaseException):  # so that a test can catch it
            return ["error", self._number(kind), kind.__name__, [self._encode_type(base) for base in kind.__bases__]]
        return ["object", self._number(kind)]

    def _number(self, value: object) -> int:
        number = self._numbers.setdefault(id(value), len(self._kept))
        if number == len(self._kept):
            self._kept.append(value)
        return number
