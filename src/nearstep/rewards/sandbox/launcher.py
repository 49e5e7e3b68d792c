"""What both processes of the sandbox start with: take the order, keep its limits, then play the side that it names.

Run as a script with two sockets: to the trainer, and to the other side. It and both sides import the standard library
alone, and lie in one folder.
"""

import ctypes
import importlib
import json
import math
import os
import resource
import signal
import socket
import sys
import traceback
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, CAPABILITIES_VERSION = 1, 4, 0x20080522


def main() -> None:
    """Run one side to its end. What it raises is said in one line, without a traceback through these files."""
    trainer, other = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    order = json.load(trainer.makefile())
    sys.path.insert(0, os.path.dirname(__file__))
    side = importlib.import_module(order["side"])
    sys.path[:] = [*sys.path[1:], *order["path"]]
    limit(order)
    sys.excepthook = _say_in_short
    sys.set_int_max_str_digits(0)
    trainer.sendall(b"started\n")
    side.run(order, trainer, other)
    sys.stdout.flush()
    os._exit(order["done"])


def limit(order: dict[str, Any]) -> None:
    """Rights and bounds that the kernel keeps, for this process and each that it starts."""
    if user := order["user"]:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)  # which takes the capabilities away, all but the inheritable
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.capset((ctypes.c_uint32 * 2)(CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)())
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(PR_SET_DUMPABLE, 0 if "tests" in order else 1)  # /proc/…/mem is no way to the tests
    most = {
        resource.RLIMIT_AS: order["memory_bytes"],
        resource.RLIMIT_CPU: math.ceil(order["timeout_seconds"]) + 1,
        resource.RLIMIT_FSIZE: order["disk_bytes"],
        resource.RLIMIT_NOFILE: order["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if order["processes"] is not None:
        most[resource.RLIMIT_NPROC] = order["processes"]
    for kind, number in most.items():
        hard = resource.getrlimit(kind)[1]
        number = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(kind, (number, number))


def _say_in_short(kind: type[BaseException], error: BaseException, trace: object) -> None:
    print("".join(traceback.format_exception_only(kind, error)), end="", file=sys.stderr)


if __name__ == "__main__":
    main()
