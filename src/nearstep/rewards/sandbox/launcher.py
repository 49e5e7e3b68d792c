"""What runs inside the sandbox: a program of its own that shuts itself in, then runs foreign code and its tests.

`sandbox.py` starts it as a script, so it imports the standard library alone. Its processes: the launcher asks for
namespaces and waits; init is the first process inside them, and its end is everybody's end; the code runs in a child
of init, and every test in a child of the code.
"""

import ctypes
import json
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 24, 36, 38
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
NAMESPACES = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE = 442, -100, 0x8000  # this number is the same on every architecture
CAPABILITIES = range(64)  # more than any kernel knows
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LINUX = sys.platform == "linux"
PAUSE_SECONDS = 0.002


class Report:
    """Lines for the trainer, each opened by a word that foreign code was not given."""

    def __init__(self, fd: int, key: str) -> None:
        self._fd, self._key, self._write = fd, key, os.write

    def write(self, line: str) -> None:
        """Append one line at once."""
        self._write(self._fd, f"{self._key} {line}\n".encode())


def main() -> None:
    """Read the order from standard input, shut the door, run, report."""
    order: dict[str, Any] = json.load(sys.stdin)
    report = Report(order["report_fd"], order["key"])
    os.dup2(order["stdin_fd"], 0)
    os.close(order["stdin_fd"])
    die_with_parent()
    try:
        second_id = order["isolation"] == "namespaces" and enter_namespaces()
    except OSError as error:
        report.write(f"refused {error}")
        return
    init = os.fork()
    if init == 0:
        run_init(order, report, second_id)
        os._exit(0)
    os.waitpid(init, 0)


def die_with_parent() -> None:
    """Ask the kernel to end this process as soon as the one that started it has ended."""
    if LINUX:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def enter_namespaces() -> bool:
    """New namespaces for this process and its children; says whether user id 1 in there is nobody's."""
    if not LINUX:
        raise OSError("only Linux has namespaces")
    uid, gid, parent = os.geteuid(), os.getegid(), os.getpid()
    ready, ask = os.pipe()
    helper = os.fork()
    if helper == 0:  # stays outside, where ids can be mapped
        os.close(ask)
        os._exit(_map_ids(Path("/proc", str(parent)), uid, gid) if os.read(ready, 1) else 2)
    os.close(ready)
    try:
        _call(LIBC.unshare(NAMESPACES), "new namespaces")
        os.write(ask, b"1")
    finally:
        os.close(ask)
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if status not in (0, 1):
        raise OSError("user ids could not be mapped into a user namespace")
    return status == 1


def _map_ids(process: Path, uid: int, gid: int) -> int:
    """Map 0 inside to who we are, and for root 1 to nobody; returns how many ids came beside the first."""
    if uid == 0:
        try:
            (process / "uid_map").write_text(f"0 0 1\n1 {NOBODY} 1\n")
            (process / "gid_map").write_text(f"0 0 1\n1 {NOBODY} 1\n")
            return 1
        except OSError:  # root of a container without a nobody
            pass
    (process / "setgroups").write_text("deny")
    (process / "uid_map").write_text(f"0 {uid} 1\n")
    (process / "gid_map").write_text(f"0 {gid} 1\n")
    return 0


def run_init(order: dict[str, Any], report: Report, second_id: bool) -> None:
    """The first process inside: prepares the room, starts the code, ends with it or at the time limit."""
    shut_in = order["isolation"] == "namespaces"
    try:
        if shut_in:
            build_room(order["readable"], order["folder"], order["disk_bytes"])
            socket.sethostname("sandbox")
            give_up_privileges(second_id)
        elif LINUX:
            _call(LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "adopting orphans")
    except OSError as error:
        report.write(f"refused {error}")
        return
    die_with_parent()  # a change of user takes the wish back
    if not shut_in:
        os.chdir(order["folder"])
    report.write("started")
    deadline = time.monotonic() + order["timeout_seconds"]
    code = os.fork()
    if code == 0:
        die_with_parent()
        set_limits(order)
        run_code(order["code"], order["tests"], report)
        os._exit(0)
    status = _wait_until(code, deadline)
    report.write("timeout" if status is None else f"exit {os.waitstatus_to_exitcode(status)}")
    if LINUX and not shut_in:
        _end_children()


def build_room(readable: list[str], folder: str, disk_bytes: int) -> None:
    """A root of its own: the interpreter's folders, read only; a small writable /tmp; four devices; nothing else."""
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    os.mkdir(f"{folder}/tmp")
    _mount("tmpfs", f"{folder}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={disk_bytes},nr_inodes=4096,mode=1777")
    for path in readable:  # which may lie below /tmp, as in a virtual environment for an afternoon
        inside = folder + path
        os.makedirs(os.path.dirname(inside), exist_ok=True)
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
            continue
        os.mkdir(inside)
        _mount(path, inside, None, MS_BIND | MS_REC)
        _make_read_only(inside)
    os.mkdir(f"{folder}/dev")
    for device in DEVICES:
        Path(folder + device).touch()
        _mount(device, folder + device, None, MS_BIND)
    os.chdir(folder)
    number = SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(f"machines of the kind {os.uname().machine} are not known")
    _call(LIBC.syscall(ctypes.c_long(number), b".", b"."), "a root of its own")
    _call(LIBC.umount2(b".", MNT_DETACH), "letting go of the old root")
    _mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir("/tmp")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    arguments = source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), options.encode()
    _call(LIBC.mount(*arguments), f"mounting {target}")


def _make_read_only(path: str) -> None:
    """With everything mounted below it; adding to the flags is allowed where replacing them is not."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID, 0, 0, 0)  # set, clear, propagation, user namespace
    arguments = ctypes.c_int(AT_FDCWD), path.encode(), ctypes.c_uint(AT_RECURSIVE), attributes, ctypes.c_size_t(32)
    _call(LIBC.syscall(ctypes.c_long(SYS_MOUNT_SETATTR), *arguments), f"making {path} read-only")


def give_up_privileges(second_id: bool) -> None:
    """No capability, none to be won, and nobody's user id where there is one."""
    for capability in CAPABILITIES:
        LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)  # fails beyond the last that the kernel knows
    if second_id:
        os.setgroups([])
        os.setresgid(1, 1, 1)
        os.setresuid(1, 1, 1)
    version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call(LIBC.capset(version_3, nothing), "giving up capabilities")
    _call(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "forbidding new privileges")


def set_limits(order: dict[str, Any]) -> None:
    """Bounds that the kernel keeps, for each process of the code."""
    limits = {
        resource.RLIMIT_AS: order["memory_bytes"],
        resource.RLIMIT_CPU: math.ceil(order["timeout_seconds"]) + 1,
        resource.RLIMIT_FSIZE: order["disk_bytes"],
        resource.RLIMIT_NOFILE: order["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if order["isolation"] == "namespaces":  # elsewhere all processes of the user would count
        limits[resource.RLIMIT_NPROC] = order["processes"]
    for limit, most in limits.items():
        _, hard = resource.getrlimit(limit)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (most, most))


def run_code(code: str, tests: list[str], report: Report) -> None:
    """Run the code as a main program, then each test in a copy of the process that it left."""
    sys.excepthook = _say_in_short
    execute, fork, wait, leave, flush = exec, os.fork, os.waitpid, os._exit, sys.stdout.flush  # before code swaps them
    main_module = ModuleType("__main__")
    sys.modules["__main__"] = main_module
    try:
        execute(compile(code, "<code>", "exec"), vars(main_module))
    except SystemExit as leaving:
        if leaving.code not in (None, 0):
            raise
    flush()
    report.write("ran")
    for number, test in enumerate(tests):
        child = fork()
        if child == 0:
            execute(compile(test, f"<test {number}>", "exec"), vars(main_module))
            report.write(f"passed {number}")
            flush()
            leave(0)
        wait(child, 0)


def _say_in_short(kind: type[BaseException], error: BaseException, trace: object) -> None:
    print("".join(traceback.format_exception_only(kind, error)), end="", file=sys.stderr)


def _wait_until(child: int, deadline: float) -> int | None:
    """The child's exit status; None at the deadline, the child killed."""
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(PAUSE_SECONDS)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _end_children() -> None:
    """Without a process namespace: end what the code left running; orphans have become our own children."""
    while children := _children():
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _children() -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:  # it has ended since
            continue
        if int(text.rpartition(")")[2].split()[1]) == os.getpid():
            found.append(int(stat.parent.name))
    return found


def _call(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


if __name__ == "__main__":
    main()
