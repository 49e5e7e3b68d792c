"""Code of a model is contained: what it may do, what each probe of a prisoner meets, and that nothing runs without."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.sandbox import memory_group
from nearstep.rewards.sandbox import run as sandbox
from nearstep.rewards.sandbox.run import check_isolation, run_python
from nearstep.rewards.sandbox.system_calls import REFUSED, X32, call_filter
from tests.lanes import slow
from tests.rewards.sandbox_probes import ALONE, CALL, COLUMN, PROBES, SHARED, one_after_another

MIB = 1 << 20


def possible(isolation) -> bool:
    try:
        check_isolation(isolation)
    except RewardError:
        return False
    return True


shut_in = pytest.mark.skipif(
    not possible("namespaces"), reason="no sandbox: bubblewrap is not installed (apt install bubblewrap) or forbidden"
)
BOTH = [pytest.param("namespaces", marks=shut_in), "process"]


def run(code, tests=(), *, isolation="namespaces", timeout=10.0, memory=512 * MIB, stdin=""):
    return run_python(code, tests, timeout_seconds=timeout, memory_bytes=memory, stdin=stdin, isolation=isolation)


# --- What code may do


@shut_in
def test_an_interpreter_below_tmp_can_be_read_and_not_written(tmp_path, monkeypatch):
    library = Path("/tmp") / f"nearstep-{os.getpid()}" / "lib"
    library.mkdir(parents=True)
    (library / "word.txt").write_text("there")
    readable = [*sandbox._readable(), str(library)]
    monkeypatch.setattr(sandbox, "_readable", lambda: readable)
    try:
        code = f"assert open('{library}/word.txt').read() == 'there'; open('/tmp/mine', 'w').write('x')"
        assert run(code).ending == "done"
        assert run(f"open('{library}/new', 'w')").ending == "error"
    finally:
        shutil.rmtree(library.parent)


@pytest.mark.parametrize("isolation", BOTH)
def test_every_test_gets_the_state_after_the_code_and_a_copy_of_its_own(isolation):
    tests = ["assert f(1) == 2; seen.append(1)", "assert f(1) == 3", "assert seen == []", "import os; os._exit(0)"]
    outcome = run("seen = []\ndef f(x): return x + 1\nprint('hi')", tests, isolation=isolation)
    assert outcome.ending == "done"
    assert outcome.passed == (True, False, True, False)
    assert (outcome.stdout, outcome.stderr) == ("hi\n", "AssertionError\n")


@pytest.mark.parametrize(
    ("code", "ending", "stderr"),
    [
        ("raise ValueError('no')", "error", "ValueError: no\n"),
        ("def (", "error", "SyntaxError"),
        ("import sys; sys.exit(3)", "error", ""),
        ("import sys; sys.exit(0)", "done", ""),
        ("import os; os._exit(0)", "error", ""),  # before its end: no test is passed
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed", ""),
        ("import ctypes; ctypes.string_at(0)", "killed", ""),
        ("x = bytearray(2 << 30)", "error", "MemoryError"),
    ],
)
def test_how_it_ended_is_told(code, ending, stderr):
    outcome = run(code, ["pass"], isolation="process")
    assert outcome.ending == ending
    assert stderr in outcome.stderr
    assert outcome.passed == (ending == "done",)


@pytest.mark.parametrize("isolation", BOTH)
@pytest.mark.parametrize("code", [slow("while True: pass"), "import re; re.match('(a+)+$', 'a' * 40 + 'b')"])
def test_a_hang_ends_at_the_limit_even_where_it_keeps_the_interpreter_lock(code, isolation):
    outcome = run(code, ["pass"], isolation=isolation, timeout=0.3)
    assert (outcome.ending, outcome.passed) == ("timeout", (False,))


def test_tests_that_were_reached_before_the_limit_count():
    outcome = run("", ["pass", "while True: pass", "pass"], isolation="process", timeout=1.0)
    assert (outcome.ending, outcome.passed) == ("timeout", (True, False, False))


@shut_in
def test_it_reads_its_input_and_imports_what_the_interpreter_can():
    code = "import dataclasses, jinja2, tempfile\nopen(tempfile.mkstemp()[1], 'w').write('x')\nprint(input()[::-1])"
    outcome = run(code, stdin="abc", memory=1 << 30)
    assert (outcome.ending, outcome.stdout) == ("done", "cba\n"), outcome.stderr


def test_sandboxes_run_side_by_side():
    with ThreadPoolExecutor(4) as pool:
        outcomes = pool.map(lambda n: run(f"print({n})", isolation="process").stdout, range(8))
    assert list(outcomes) == [f"{n}\n" for n in range(8)]


# --- What a prisoner meets


@contextlib.contextmanager
def prepared(tmp_path):
    """The probes, filled with what they try to reach: a file, a listener on loopback and an abstract one, a process."""
    canary = tmp_path / "canary"
    canary.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        name = f"\0nearstep-{os.getpid()}"
        abstract.bind(name)
        abstract.listen()
        names = {"canary": str(canary), "folder": str(tmp_path), "port": listener.getsockname()[1]}
        names |= {"abstract": name, "pid": os.getpid()}
        yield {probe: code.format(**names) for probe, code in PROBES.items()}
    assert canary.read_text() == "secret"


@shut_in
def test_probes_are_refused_one_after_another(tmp_path):
    with prepared(tmp_path) as probes:
        together = {name: code for name, code in probes.items() if name not in ALONE}
        outcome = run(one_after_another(together))
    assert (outcome.ending, outcome.stdout) == ("done", ""), outcome


@shut_in
@pytest.mark.slow
@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_is_refused(probe, tmp_path):
    with prepared(tmp_path) as probes:
        outcome = run(f"{CALL}\n{probes[probe]}", timeout=5.0)
    assert outcome.ending in ("error", "killed"), outcome
    assert "SyntaxError" not in outcome.stderr
    assert len(outcome.stdout) <= sandbox.SHOWN_BYTES


@shut_in
def test_every_call_of_the_table_is_refused_and_the_older_interfaces_end_the_process():
    numbers = [numbers[COLUMN] for numbers in REFUSED.values() if numbers[COLUMN] is not None]
    code = f"{CALL}\nfor number in {numbers + list(SHARED.values())}:\n    try: call(number, 0, 0, 0, 0, 0)\n"
    code += "    except PermissionError: pass\n    else: print(number)"
    assert (run(code).ending, run(code).stdout) == ("done", "")
    if platform.machine() == "x86_64":
        assert run(f"{CALL}\nlibc.syscall({X32} + 39)").ending == "killed"  # getpid of the x32 interface


@shut_in
def test_what_programs_need_is_allowed():
    code = """
import asyncio, ctypes, multiprocessing, os, socket, subprocess, sys, tempfile, threading
assert subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True).stdout == b"1\\n"
assert asyncio.run(asyncio.wait_for(asyncio.sleep(0, "slept"), 5)) == "slept"
ends = socket.socketpair()
ends[0].sendall(b"x")
assert ends[1].recv(1) == b"x"
pipe = multiprocessing.get_context("fork").Pipe()
child = multiprocessing.get_context("fork").Process(target=pipe[0].send, args=(3,))
child.start(); child.join(); assert pipe[1].recv() == 3
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
import numpy; assert (numpy.eye(20) @ numpy.ones(20)).sum() == 20
"""
    outcome = run(code, memory=1 << 30)
    assert (outcome.ending, outcome.stdout) == ("done", "thread\n"), outcome.stderr


@shut_in
def test_the_filter_of_a_machine_without_a_table_is_no_filter(monkeypatch):
    assert len(call_filter("aarch64")) % 8 == len(call_filter("x86_64")) % 8 == 0
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")  # it may not be installed here
    with pytest.raises(RewardError, match=r"not run.*x86_64 and aarch64 alone.*riscv64.*isolation='process'"):
        run("")


def test_memory_of_a_group_is_bounded_where_groups_can_be_made(tmp_path, monkeypatch):
    """As the kernel shows groups: files appear with the folder. The limit itself is the kernel's."""
    monkeypatch.setattr(memory_group, "MOUNT", tmp_path)
    monkeypatch.setattr(memory_group, "OWN", tmp_path / "own")
    (tmp_path / "own").write_text("0::/user/run.scope\n")
    (tmp_path / "user" / "run.scope").mkdir(parents=True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # files of a real group go with it
    made, mkdir = [], Path.mkdir

    def appear(self, *given, **named):
        mkdir(self, *given, **named)
        if self.parent == tmp_path / "user":  # the group around it was delegated, its own has processes
            made.append(self)
            for name in ("memory.max", "memory.swap.max", "memory.oom.group"):
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", appear)
    memory_group.parent_group.cache_clear()
    assert memory_group.parent_group() == tmp_path / "user"
    with memory_group.limited(["sh", "-c", "echo $$"], 12345) as command:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert (made[-1] / "cgroup.procs").read_text() == said  # the program itself is its member
        assert [(made[-1] / name).read_text() for name in ("memory.max", "memory.swap.max")] == ["12345", "0"]
    memory_group.parent_group.cache_clear()


def test_docs_name_every_probe():
    docs = (Path(__file__).parents[2] / "docs" / "sandbox.md").read_text(encoding="utf-8")
    listed = docs.partition("## What was tried")[2].partition("\n## ")[0]
    assert all(name in listed for name in PROBES)
    assert f"{len(PROBES)} probes" in docs


@shut_in
def test_the_environment_is_empty_and_nobody_else_is_there(monkeypatch):
    monkeypatch.setenv("SECRET_CANARY", "secret")
    code = (
        "import os\nprint('SECRET_CANARY' in os.environ, os.getpid() < 10, os.path.exists('/proc'), os.listdir('/dev'))"
    )
    outcome = run(code)
    assert outcome.stdout.startswith("False True False ['"), outcome
    assert "secret" not in outcome.stdout


@shut_in
def test_a_fork_bomb_is_bounded_and_leaves_nothing(own_launcher):
    code = "import os, time\nfor _ in range(1000):\n    if os.fork() == 0: time.sleep(1000)"
    started = time.monotonic()
    assert run(code, timeout=2.0).ending == "error"  # the kernel refuses the 15th process or so
    assert time.monotonic() - started < sandbox.STARTUP_SECONDS
    assert not still_there(own_launcher)


@pytest.mark.parametrize("isolation", BOTH)
def test_a_child_that_is_left_behind_ends_with_the_code(isolation, own_launcher):
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)"
    )
    assert run(code, isolation=isolation).ending == "done"
    assert not still_there(own_launcher)


@pytest.fixture
def own_launcher(tmp_path, monkeypatch):
    """A copy of the launcher, by whose name its processes are told from those of other tests."""
    folder = shutil.copytree(sandbox.LAUNCHER.parent, tmp_path / "sandbox")
    monkeypatch.setattr(sandbox, "LAUNCHER", folder / sandbox.LAUNCHER.name)
    return sandbox.LAUNCHER


def still_there(launcher) -> list[str]:
    """Processes of a launcher; their ends may take a moment."""
    for _ in range(100):
        found = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(launcher).encode() in read(path)]
        if not found:
            break
        time.sleep(0.05)
    return found


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended since
        return b""


@shut_in
def test_nothing_stays_on_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("open('/tmp/left', 'w').write('x')")
    assert list(tmp_path.iterdir()) == []


@shut_in
def test_root_runs_it_as_a_user_without_rights():
    if os.geteuid() != 0:
        pytest.skip("the tests do not run as root")
    code = (
        "import ctypes, os\ncapabilities = (ctypes.c_uint32 * 6)()\n"
        "ctypes.CDLL(None).capget((ctypes.c_uint32 * 2)(0x20080522, 0), capabilities)\n"
        "print(os.getresuid()[0] >= 61184, len({*os.getresuid(), *os.getresgid()}), os.getgroups(), sum(capabilities))"
    )
    assert run(code).stdout == "True 1 [] 0\n"


@shut_in
def test_its_loopback_is_not_the_machines():
    with socket.socket(type=socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        run(f"import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', {listener.getsockname()})")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.recv(1)


# --- Without isolation nothing runs


@pytest.mark.parametrize(
    ("script", "reason"),
    [(None, "bubblewrap is not installed"), ("#!/bin/sh\necho no namespaces here >&2; exit 1", "no namespaces here")],
)
def test_without_a_sandbox_nothing_is_run(script, reason, monkeypatch, tmp_path):
    bwrap = tmp_path / "bwrap"
    if script is not None:
        bwrap.write_text(script)
        bwrap.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    canary = tmp_path / "canary"
    with pytest.raises(RewardError, match=rf"not run.*{reason}.*apt install bubblewrap.*isolation='process'"):
        run(f"open({str(canary)!r}, 'w')")
    assert not canary.exists()


def test_a_launcher_that_breaks_is_no_outcome(monkeypatch, tmp_path):
    launcher = tmp_path / "launcher.py"
    launcher.write_text("raise SystemExit('broken')")
    monkeypatch.setattr(sandbox, "LAUNCHER", launcher)
    with pytest.raises(RewardError, match="broken"):
        run("", isolation="process")


@shut_in
def test_it_ends_with_the_trainer(own_launcher):
    trainer = (
        "import pathlib, threading, time; from nearstep.rewards import sandbox\n"
        f"sandbox.LAUNCHER = pathlib.Path({str(own_launcher)!r})\n"
        "code = 'print(1)\\nwhile True: pass'\n"
        "limits = {'timeout_seconds': 60, 'memory_bytes': 1 << 30}\n"
        "threading.Thread(target=sandbox.run_python, args=(code,), kwargs=limits).start()\n"
        "time.sleep(1)\nprint('up', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", trainer], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.kill()
    assert not still_there(own_launcher)
