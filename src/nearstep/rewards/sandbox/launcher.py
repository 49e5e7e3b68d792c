"""What runs inside the sandbox: a model's code, or in a second process of its own the tests of that code.

`sandbox.py` starts it as a script, so it imports the standard library alone. The tests never share an interpreter
with the code. What they take from it are proxies: a call goes over a socket to the code's process, and what comes
back is plain data, which the tests compare by themselves. Nothing in the code's process is trusted or secret.

From tests to code travel pickles, from code to tests JSON alone: scalars as they are, all else as [kind, ...].
"""

import builtins
import contextlib
import ctypes
import importlib
import io
import json
import math
import operator
import os
import pickle
import resource
import signal
import socket
import symtable
import sys
import traceback
from collections import deque
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, CAPABILITIES_VERSION = 1, 4, 0x20080522
LARGEST_MESSAGE = 1 << 28
ENDED = 77  # exit code of a process that has served a test to its end
PLAIN = (bool, int, float, str, type(None))
SCALARS: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (int, int.__int__), (float, float.__float__), (str, str.__str__),
)  # fmt: skip
SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
CONSTRUCTED = {
    "complex": "builtins", "range": "builtins", "Decimal": "decimal", "Fraction": "fractions", "datetime": "datetime",
    "date": "datetime", "time": "datetime", "timedelta": "datetime",
}  # fmt: skip
MUTABLE = (list, dict, set, bytearray)
FORWARDED = (
    "bool", "len", "iter", "next", "str", "repr", "hash", "int", "float", "index", "abs", "neg", "round", "reversed",
    "getitem", "setitem", "delitem",
)  # fmt: skip
COMPARED = ("eq", "ne", "lt", "le", "gt", "ge")
OPERATIONS = vars(operator) | vars(builtins)


class Line:
    """Messages over a socket, each after eight bytes with its length."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send_bytes(self, body: bytes) -> None:
        """Send one message."""
        self._end.sendall(len(body).to_bytes(8, "big") + body)

    def receive_bytes(self) -> bytes:
        """The next message. Raises EOFError if the other side has gone."""
        size = int.from_bytes(self._read(8), "big")
        if size > LARGEST_MESSAGE:
            raise ValueError(f"a value of {size} bytes is too large")
        return self._read(size)

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._end.recv(min(size - len(parts), 1 << 20))
            if not part:
                raise EOFError("the process of the code has ended")
            parts += part
        return bytes(parts)


# --- The code's side


class CodeSide:
    """Answers what tests ask of the code: its names, calls, attributes and operations on its objects."""

    def __init__(self, line: Line, names: dict[str, object]) -> None:
        self._line, self._names = line, names
        self._kept: list[object] = []  # what a test holds by number; keeping it also keeps its id from being reused
        self._numbers: dict[int, int] = {}

    def serve_tests(self) -> None:
        """Each test in a copy of this process, so that none disturbs another; until the tests' side has gone."""
        self._send(["ran"])
        while True:
            request = self._receive()
            if request == ("begin",):
                child = os.fork()
                if child == 0:
                    self._serve_one()
                    sys.stdout.flush()
                    os._exit(ENDED)
                if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != ENDED:
                    self._send(["died"])
            elif request != ("end",):
                self._send(["died"])

    def _serve_one(self) -> None:
        while (request := self._receive()) != ("end",):
            self._answer(*request)

    def _answer(self, operation: str, *arguments: Any) -> None:
        try:
            reply = ["return", *self._do(operation, arguments)]
        except BaseException as error:  # noqa: BLE001 - it goes on in the test
            reply = ["raise", *(self._encode(part) for part in (type(error), error.args, vars(error)))]
        self._send(reply)

    def _do(self, operation: str, arguments: tuple[Any, ...]) -> tuple[object, object]:
        if operation == "name":
            return self._encode(self._names[arguments[0]]), None
        if operation != "call":
            return self._encode(OPERATIONS[operation](*arguments)), None
        function, places, keywords = arguments
        given = [*places, *keywords.values()]
        before = [self._encode(value) if type(value) in MUTABLE else None for value in given]
        result = self._encode(function(*places, **keywords))
        after = [self._encode(value) if type(value) in MUTABLE else None for value in given]
        return result, after if after != before else None

    def _encode(self, value: object) -> object:
        kind = type(value)
        if kind in PLAIN:
            return value
        for scalar, plain in SCALARS:
            if isinstance(value, scalar):  # of a class of its own; as what it compares
                return plain(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray | numpy.generic):
            return self._encode(value.tolist())
        for name, sequence in SEQUENCES.items():
            if isinstance(value, sequence):
                return [name, [entry if type(entry) in PLAIN else self._encode(entry) for entry in value]]
        if isinstance(value, dict):
            return ["dict", [[self._encode(key), self._encode(entry)] for key, entry in value.items()]]
        if isinstance(value, bytes | bytearray):
            return ["bytes" if isinstance(value, bytes) else "bytearray", value.decode("latin-1")]
        if isinstance(value, complex):
            return ["complex", value.real, value.imag]
        if CONSTRUCTED.get(kind.__name__) == kind.__module__:
            return [kind.__name__, *(self._encode(part) for part in kind.__reduce__(value)[1])]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type):
            return self._encode_type(value)
        return ["object", self._number(value)]

    def _encode_type(self, kind: type) -> object:
        if getattr(builtins, kind.__name__, None) is kind:
            return ["builtin", kind.__name__]
        if issubclass(kind, BaseException):  # so that a test can catch it
            return ["error", self._number(kind), kind.__name__, [self._encode(base) for base in kind.__bases__]]
        return ["object", self._number(kind)]

    def _number(self, value: object) -> int:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._kept)
            self._kept.append(value)
        return self._numbers[id(value)]

    def _send(self, message: list[object]) -> None:
        self._line.send_bytes(json.dumps(message).encode())

    def _receive(self) -> tuple[Any, ...]:
        unpickler = pickle.Unpickler(io.BytesIO(self._line.receive_bytes()))
        unpickler.persistent_load = self._load  # type: ignore[method-assign]
        message: tuple[Any, ...] = unpickler.load()
        return message

    def _load(self, reference: Any) -> Any:
        number, name = reference
        if name is None:
            return self._kept[number]

        def lent(*places: object, **keywords: object) -> object:
            """A function of the test: what the code calls runs over there."""
            self._send(["call", number, self._encode(places), self._encode(keywords)])
            while True:
                kind, *rest = self._receive()
                if kind == "return":
                    return rest[0]
                if kind == "raise":
                    raise rest[0]
                self._answer(kind, *rest)

        lent.__name__ = name
        return lent


# --- The tests' side


class TestSide:
    """Where a test asks the code: sends requests, makes values of what is said."""

    __test__ = False

    def __init__(self, line: Line) -> None:
        self._line = line
        self._lent: list[Callable[..., object]] = []
        self._errors: dict[int, type[BaseException]] = {}

    def send(self, message: tuple[object, ...]) -> None:
        """Send a request or a reply. Raises TypeError for what cannot cross: objects of a test's own class."""
        body = io.BytesIO()
        pickler = pickle.Pickler(body)
        pickler.persistent_id = self._refer  # type: ignore[method-assign]
        try:
            pickler.dump(message)
        except (pickle.PicklingError, AttributeError) as error:
            raise TypeError(f"this cannot be given to the code: {error}") from None
        self._line.send_bytes(body.getvalue())

    def wait_for_code(self) -> None:
        """Until the code has run. Raises EOFError if it did not come to its end."""
        self._line.receive_bytes()

    def ask(self, *request: object) -> Any:
        """What the code says; raises what the code raises."""
        return self.ask_call(*request)[0]

    def ask_call(self, *request: object) -> tuple[Any, Any]:
        """The same, and what has become of the arguments of a call, or None if they are as they were."""
        self.send(request)
        while True:
            kind, *rest = json.loads(self._line.receive_bytes())
            if kind == "return":
                value, after = rest
                return self._decode(value), after and [self._decode(entry) for entry in after]
            if kind == "raise":
                raise self._error(*map(self._decode, rest))
            if kind != "call":
                raise RuntimeError("the process of the code has ended")
            self._call(*rest)

    def name(self, name: str) -> Any:
        """What a name means in the code. Raises KeyError if it has no meaning there."""
        value = self.ask("name", name)
        if isinstance(value, ModuleType) and value.__name__ != name:
            raise KeyError(name)  # `import fakes as math` is no reason for a test to compare by it
        return value

    def _call(self, number: int, places: object, keywords: object) -> None:
        """Call a function that was lent to the code, for the code."""
        try:
            self.send(("return", self._lent[number](*self._decode(places), **self._decode(keywords))))
        except Exception as error:  # noqa: BLE001 - it goes on in the code
            try:
                self.send(("raise", error))
            except TypeError:
                self.send(("raise", RuntimeError(str(error))))

    def _refer(self, value: object) -> tuple[int, str | None] | None:
        """How the code is told of its own objects, and of functions that tests define."""
        if isinstance(value, Remote):
            return value._number, None
        for number, error in self._errors.items():
            if value is error:
                return number, None
        if isinstance(value, FunctionType | MethodType) and value.__module__ == "__main__":
            self._lent.append(value)
            return len(self._lent) - 1, value.__name__
        return None

    def _decode(self, said: Any) -> Any:
        if not isinstance(said, list):
            return said
        kind, *rest = said
        if kind in SEQUENCES:
            return SEQUENCES[kind](map(self._decode, rest[0]))
        if kind == "dict":
            return {self._decode(key): self._decode(value) for key, value in rest[0]}
        if kind in ("bytes", "bytearray"):
            return {"bytes": bytes, "bytearray": bytearray}[kind](rest[0], "latin-1")
        if kind in CONSTRUCTED:
            return getattr(importlib.import_module(CONSTRUCTED[kind]), kind)(*map(self._decode, rest))
        if kind == "module":
            return __import__(rest[0])
        if kind == "builtin":
            found = getattr(builtins, rest[0])
            return found if isinstance(found, type) else None
        if kind == "error":
            number, name, bases = rest
            if number not in self._errors:
                self._errors[number] = type(name, tuple(map(self._decode, bases)), {})
            return self._errors[number]
        return Remote(self, rest[0])

    def _error(self, kind: type[BaseException], arguments: Any, attributes: dict[str, object]) -> BaseException:
        error = kind.__new__(kind, *arguments)  # without __init__, which may want other arguments
        error.args = arguments
        error.__dict__.update(attributes)
        return error


class Remote:
    """An object of the code, as a test sees it.

    Its operators answer with plain data. It is equal to no plain value and in no order with one: the code's __eq__
    is asked about two objects of the code alone, for else it could call anything equal to what a test expects. For the
    same reason it has no arithmetic with plain values and is searched by iteration.
    """

    __slots__ = ("_number", "_side")

    def __init__(self, side: TestSide, number: int) -> None:
        object.__setattr__(self, "_side", side)
        object.__setattr__(self, "_number", number)

    def __call__(self, *places: Any, **keywords: Any) -> Any:
        value, after = self._side.ask_call("call", self, places, keywords)
        for old, new in zip((*places, *keywords.values()), after or (), strict=False):
            if isinstance(old, list | bytearray) and new is not None:
                old[:] = new
            elif isinstance(old, dict | set) and new is not None:
                old.clear()
                old.update(new)
        return value

    def __getattr__(self, name: str) -> Any:
        return self._side.ask("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._side.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._side.ask("delattr", self, name)

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, Remote) and bool(self._side.ask("isinstance", value, self))

    def __enter__(self) -> Any:
        return self.__getattr__("__enter__")()

    def __exit__(self, kind: object, error: object, trace: object) -> bool:
        handled = self.__getattr__("__exit__")(kind, error, None)
        return bool(handled) and not isinstance(error, AssertionError)  # that is the test's


def _forwarded(operation: str) -> Callable[..., Any]:
    return lambda self, *arguments: self._side.ask(operation, self, *arguments)


def _compared(operation: str) -> Callable[[Remote, object], bool]:
    def compare(self: Remote, other: object) -> bool:
        if isinstance(other, Remote):
            return bool(self._side.ask(operation, self, other))
        if other is None and operation in ("eq", "ne"):
            return operation == "ne"
        raise TypeError("an object of the code is compared with a value of the test: compare its plain values")

    return compare


for _name in FORWARDED:
    setattr(Remote, f"__{_name}__", _forwarded(_name))
for _name in COMPARED:
    setattr(Remote, f"__{_name}__", _compared(_name))


class Names(dict[str, Any]):
    """The global names of a test: its own, those of the setup, those of Python, and the code's, asked for each time."""

    side: TestSide | None = None
    tested: frozenset[str] = frozenset()

    def __missing__(self, name: str) -> Any:
        if self.side is None or (hasattr(builtins, name) and name not in self.tested):
            raise KeyError(name)
        return self.side.name(name)


def tested_names(test: str, setup: Names) -> frozenset[str]:
    """The names of a test that are the code's to define, whatever they mean elsewhere.

    Those that neither test nor setup nor Python define. If there are none, what the setup itself defines, for then it
    is a stub of the code; else builtins, for MBPP asks for a function named `sum`.
    """
    table = symtable.symtable(test, "<test>", "exec")
    own = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    free = frozenset(_global_names(table)) - own
    stubs = {name for name, value in setup.items() if getattr(value, "__module__", None) == "__main__"}
    return free - set(setup) - set(dir(builtins)) or free & stubs or free & set(dir(builtins))


def _global_names(table: symtable.SymbolTable) -> set[str]:
    found = {
        symbol.get_name() for symbol in table.get_symbols()
        if symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module")
    }  # fmt: skip
    return found.union(*map(_global_names, table.get_children()))


# --- Both


def main() -> None:
    """Read the order, shut in what is left to shut, run, report."""
    control, end = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    line = Line(end)
    order = json.loads(Line(control).receive_bytes())
    confine(order)
    sys.excepthook = _say_in_short
    sys.path += order["path"]
    sys.set_int_max_str_digits(0)
    control.sendall(b"started\n")
    if "tests" in order:
        with contextlib.suppress(EOFError, ConnectionError):  # the code has ended: what is left has failed
            run_tests(order, TestSide(line), control)
    else:
        run_code(order["code"], line, control)
    sys.stdout.flush()
    os._exit(0)


def confine(order: dict[str, Any]) -> None:
    """Bounds that the kernel keeps, for each process."""
    if user := order["user"]:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # which takes the capabilities away, all but the inheritable
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.capset((ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)())
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_DUMPABLE, 0 if "tests" in order else 1)  # /proc/…/mem is no way to the tests
    limits = {
        resource.RLIMIT_AS: order["memory_bytes"], resource.RLIMIT_CPU: math.ceil(order["timeout_seconds"]) + 1,
        resource.RLIMIT_FSIZE: order["disk_bytes"], resource.RLIMIT_NOFILE: order["open_files"],
        resource.RLIMIT_CORE: 0,
    }  # fmt: skip
    if order["processes"] is not None:
        limits[resource.RLIMIT_NPROC] = order["processes"]
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def run_code(code: str, line: Line, control: socket.socket) -> None:
    """Run the code as a main program, then let it be tested."""
    main_module = ModuleType("__main__")
    sys.modules["__main__"] = main_module
    try:
        exec(compile(code, "<code>", "exec"), vars(main_module))
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise
    sys.stdout.flush()
    control.sendall(b"ran\n")
    with contextlib.suppress(EOFError, ConnectionError):  # the tests are over
        CodeSide(line, vars(main_module)).serve_tests()


def run_tests(order: dict[str, Any], side: TestSide, control: socket.socket) -> None:
    """Run the setup, then each test in a process of its own; one that reaches its end has passed."""
    setup = Names(__name__="__main__")
    module = sys.modules["__main__"] = SimpleNamespace()  # type: ignore[assignment]
    exec(compile(order["setup"], "<setup>", "exec"), setup)
    vars(module).update(setup)  # where pickle looks for classes, which the code has from the same setup
    side.wait_for_code()
    for number, test in enumerate(order["tests"]):
        side.send(("begin",))
        child = os.fork()
        if child == 0:
            tested = tested_names(test, setup)
            names = Names({name: value for name, value in setup.items() if name not in tested})
            names.side, names.tested = side, tested
            exec(compile(test, f"<test {number}>", "exec"), names)
            sys.stdout.flush()
            control.sendall(b"passed %d\n" % number)
            os._exit(0)
        os.waitpid(child, 0)
        side.send(("end",))
    control.sendall(b"end\n")


def _say_in_short(kind: type[BaseException], error: BaseException, trace: object) -> None:
    print("".join(traceback.format_exception_only(kind, error)), end="", file=sys.stderr)


if __name__ == "__main__":
    main()
