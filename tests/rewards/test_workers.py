"""R22: whatever a reward function does to its process: the trainer lives, other rows are scored, nothing is left."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.ask import OnError
from nearstep.rewards.combine import Rewards
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.loading import load_function
from nearstep.rewards.workers import pool as workers
from nearstep.rewards.workers.channel import Channel
from nearstep.rewards.workers.pool import WorkerPool
from nearstep.rewards.workers.process import FunctionSpec
from nearstep.rewards.workers.source import WorkerReward, function_spec
from tests.lanes import sampled, slow
from tests.rewards.episodes import play
from tests.rewards.light import in_workers, is_elsewhere, texts
from tests.tiny import byte_tokenizer

SOURCE = """
import asyncio, ctypes, os, re, signal, subprocess, sys, time

def lengths(completions, **kwargs):
    return [float(len(text)) for text in completions]

def misbehaves(completions, log_extra):
    (text,) = completions
    if text == "sleep": time.sleep(1000)
    if text == "loop":
        while True: pass
    if text == "regex": re.match("(a+)+$", "a" * 64 + "b")
    if text == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    if text == "leave": os._exit(0)
    if text == "crash": ctypes.string_at(0)
    if text == "exit": sys.exit(3)
    if text == "raise": raise ValueError("no")
    if text == "nan": return [float("nan")]
    if text == "memory": return [float(len(bytearray(1 << 45)))]
    if text == "much": log_extra("text", ["x" * (17 << 20)])
    if text == "child":
        subprocess.Popen([sys.executable, "-c", f"import time; time.sleep(1000)  # from {__file__}"])
    if text == "orphan" and os.fork() == 0:
        time.sleep(1000)  # holds the pipe of the worker
    if text in ("orphan", "killed"): os.kill(os.getpid(), signal.SIGKILL)
    return [float(len(text))]

def pipe():
    return int(sys.argv[2])

def meddles(completions):
    (text,) = completions
    line = b'{"task": %d, "process": %d, "value": 77.0, "extras": {}, "metrics": {}}\\n'
    if text == "fork, raise" and os.fork() == 0: raise ValueError("in the child")
    if text == "fork, return" and os.fork() == 0: return [77.0]
    if text == "fork behind Python" and ctypes.CDLL(None).fork() == 0: return [77.0]
    if text == "bytes": os.write(pipe(), bytes(range(255, -1, -1)))
    if text == "half":
        os.write(pipe(), line[:20])
        time.sleep(1000)
    if text == "list": os.write(pipe(), b"[1.0]\\n")
    if text == "fields": os.write(pipe(), b'{"value": 77.0}\\n')
    if text == "number": os.write(pipe(), line % (10**6, os.getpid()))
    if text == "process": os.write(pipe(), line % (1, 1))
    if text == "deep": os.write(pipe(), b"[" * 100000 + b"\\n")
    if text == "close":
        os.closerange(3, 64)
        time.sleep(1000)
    if text == "twice":
        write = os.write
        os.write = lambda fd, line: write(fd, bytes(line) * 2)
    return [float(len(text))]

def tells_and_sleeps(completions):
    open(completions[0], "w").close()
    time.sleep(1000)

def sees(prompts, completions, completion_ids, answer, log_extra, log_metric, trainer_state=None):
    log_extra("shown", [f"{prompts[0]} {completion_ids[0]} {answer[0]} {trainer_state}"])
    log_metric("rows", len(completions))
    return [answer[0] == completions[0]]

async def waits(completions):
    await asyncio.sleep(0.001)
    return [len(text) for text in completions]

def per_token(completion_ids, **kwargs):
    return [[1.0] * len(ids) for ids in completion_ids]

def spans(completions):
    return [[(0, 1, 2.5)]]

def logs_two(completions, log_extra):
    log_extra("text", ["a", "b"])
    return [1.0]

class Counter:
    calls = 0

    def __call__(self, completions):
        self.calls += 1
        return [float(self.calls)]

def process(completions):
    return [float(os.getpid())]

def two_processes(completions):
    # It answers once a second process has been asked too.
    here = os.path.dirname(__file__)
    open(os.path.join(here, f"{os.getpid()}.asked"), "w").close()
    while sum(name.endswith(".asked") for name in os.listdir(here)) < 2:
        time.sleep(0.01)
    return [float(os.getpid())]
"""


LAZY = """
import sys

def helper(text):
    import lazy_helpers
    return lazy_helpers

def unused():
    import lazy_unused

def there():
    return {name[5:] for name in sys.modules if name.startswith("lazy_")}

def function(completions):
    found = there()
    if completions is None:
        import lazy_that_is_nowhere
    import lazy_plain, lazy_inside
    from lazy_parts import Part as Renamed
    helper(completions)
    return [float(len(found & {"plain", "inside", "parts", "helpers"}) + 10 * ("unused" in found))]

class Scorer:
    def __call__(self, completions):
        return self.inner(completions)

    def inner(self, completions):
        return function(completions)
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(SOURCE)
    return path


def values(file, name, completions, **options):
    columns = options.pop("columns", {})
    (source,), pool = in_workers(file, name, **options)
    answer = source.score(texts(completions, **columns))
    pool.close()
    return answer


def gone(pool_pids):
    """Whether processes end; a killed one may take a moment."""
    return comes_true(lambda: not any(Path("/proc", str(pid)).exists() for pid in pool_pids))


def comes_true(condition):
    """Whether a condition holds within a minute, for which a loaded machine may need it."""
    for _ in range(3000):
        if condition():
            return True
        time.sleep(0.02)
    return False


def left_behind(file):
    """Processes started by the functions of this file that are still there."""
    found = []

    def none():
        found[:] = [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"from {file}".encode() in read(path)]
        return not found

    comes_true(none)
    return found


def read(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended since
        return b""


# --- Misbehaviour

TOO_LATE = "did not answer within reward_timeout_seconds = 1"
HARMS = {
    "sleep": f"{TOO_LATE} on row 1 of the batch (episode 101)",
    "loop": TOO_LATE,
    "regex": TOO_LATE,
    "deaf": TOO_LATE,
    "leave": "ended its worker process (exit code 0) on row 1 of the batch (episode 101)",
    "crash": "ended its worker process (signal SIGSEGV)",
    "orphan": "ended its worker process (signal SIGKILL)",
    "exit": "raised SystemExit: '3'",
    "raise": "raised ValueError: 'no'",
    "nan": "returned nan for row 1 of the batch (episode 101)",
    "memory": "raised MemoryError",
    "much": "answered with more than 16 MiB on row 1 of the batch (episode 101)",
}


@pytest.mark.parametrize(("harm", "words"), sampled(HARMS.items(), 3), ids=HARMS)
def test_harm_costs_its_row_and_no_other(file, harm, words):
    # The rows that do no harm must answer in that time as well, on a loaded machine too.
    said = values(file, "misbehaves", ["a", harm, "ccc"], timeout=1.0 if words.startswith(TOO_LATE) else 60.0).values
    assert (said[0], said[2]) == (1.0, 3.0)
    assert isinstance(said[1], RewardError)
    assert words in str(said[1])


ODD = {
    "bytes": r"wrote to the pipe of its worker on row 1 of the batch \(episode 101\): its worker process was killed",
    "half": TOO_LATE,
    "list": "wrote to the pipe",
    "fields": "wrote to the pipe",
    "number": "answered for another row or from another process on row 1",
    "process": "answered for another row or from another process on row 1",
    "deep": "wrote to the pipe",
    "close": "((closed the pipe of|ended) its worker|did not answer within .*) on row 1",
}


@pytest.mark.parametrize(("odd", "words"), sampled(ODD.items(), 3), ids=ODD)
def test_anything_odd_on_the_pipe_costs_its_row_and_is_no_score(file, odd, words):
    said = values(
        file, "meddles", ["a", odd, "ccc", "dd"], timeout=1.0 if words == TOO_LATE else 2.0 if odd == "close" else 60.0
    ).values
    # Where everything is closed under it, a worker ends, is found out, or is waited for, as the threads fall.
    assert (said[0], said[2], said[3]) == (1.0, 3.0, 2.0)
    assert isinstance(said[1], RewardError)
    assert re.search(words, str(said[1]))


@pytest.mark.parametrize("way", ["fork, raise", slow("fork, return"), slow("fork behind Python")])
def test_a_child_that_comes_back_from_a_function_says_nothing(file, way):
    completions = ["a", way, "ccc", way, "dd"]
    assert values(file, "meddles", completions).values == [float(len(text)) for text in completions]


def test_what_is_said_twice_costs_no_row(file):
    assert values(file, "meddles", ["a", "twice", "ccc", "dd"]).values == [1.0, 5.0, 3.0, 2.0]


def test_one_that_stops_in_the_middle_of_a_message_keeps_nobody_waiting(file):
    # The driver would wait for the rest of the message, and with it the other worker's rows.
    said = values(file, "meddles", ["half", *["a"] * 30], count=2, timeout=2.0).values
    assert said[1:] == [1.0] * 30
    assert "did not answer within" in str(said[0])


def test_a_message_that_nobody_reads_keeps_nobody_waiting():
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    channel.send(b"x" * (4 << 20))
    assert channel.is_sending
    arrived = b""
    while len(arrived) < 8 + (4 << 20):
        arrived += theirs.recv(1 << 20)
        channel.push()
    assert arrived == (4 << 20).to_bytes(8) + b"x" * (4 << 20)
    assert not channel.is_sending
    theirs.close()
    channel.send(b"to nobody")  # its end is told by reading
    with pytest.raises(EOFError):
        channel.line()


def test_lines_come_one_by_one_however_they_arrive():
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    seen = []
    for piece in (b"on", b"e\ntwo\nth", b"ree\n"):
        theirs.send(piece)
        while (line := channel.line()) is not None:
            seen.append(line)
    assert seen == [b"one", b"two", b"three"]
    assert channel.is_quiet()
    theirs.send(b"more")
    assert not channel.is_quiet()


# --- Time


def test_what_reading_a_row_imports_is_not_on_its_clock(file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "slow_to_import.py").write_text(
        f"import os, time\nif os.getpid() != {os.getpid()}: time.sleep(1.5)\nclass Kind: pass"
    )
    from slow_to_import import Kind

    said = values(file, "sees", ["x"], columns={"answer": [Kind()]}, timeout=1.0)
    assert said.values == [0.0]


def test_what_a_function_imports_by_the_way_is_there_before_its_first_row(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("plain", "inside", "helpers", "unused", "parts"):
        (tmp_path / f"lazy_{name}.py").write_text("class Part: pass")
    path = tmp_path / "rewards.py"
    path.write_text(LAZY)
    for name in ("function", "Scorer"):
        assert values(path, name, ["x"]).values == [4.0], name


def test_a_child_that_a_function_started_ends_with_its_worker(file):
    assert values(file, "misbehaves", ["child"]).values == [5.0]
    assert left_behind(file) == []


def test_every_row_may_fail_and_workers_are_replaced(file):
    completions = ["leave", "a", "crash", "bb", "killed", "leave"] * 3
    said = values(file, "misbehaves", completions, count=3).values
    assert [not isinstance(value, RewardError) for value in said] == [False, True, False, True, False, False] * 3


def test_rows_keep_their_order_and_run_at_the_same_time(file):
    (source,), pool = in_workers(file, "two_processes", count=2, timeout=60.0)
    pids = {int(value) for value in source.score(texts(["x"] * 40)).values}
    assert len(pids) == 2
    assert os.getpid() not in pids
    pool.close()
    assert gone(pids)
    said = values(file, "lengths", ["x" * length for length in range(40)], count=2).values
    assert said == [float(length) for length in range(40)]


# --- The contract holds there too


def test_what_a_function_is_given_and_logs_is_what_it_is_in_the_trainer(file):
    columns = {"answer": ["yes", "no"], "unused": [object(), object()]}  # which could not be sent
    answer = values(file, "sees", ["yes", "yes"], columns=columns)
    here = FunctionReward(load_function(f"{file}:sees")).score(texts(["yes", "yes"], answer=["yes", "no"]))
    assert [float(value) for value in answer.values] == [1.0, 0.0]
    assert answer.extras == here.extras | {"shown": answer.extras["shown"]}
    assert answer.extras["shown"][0] == here.extras["shown"][0]
    assert answer.metrics == {"rows": [1.0, 1.0]}  # one call per row


@pytest.mark.parametrize("name", [slow("lengths"), slow("waits"), "per_token", slow("spans"), "Counter"])
def test_scores_are_those_of_the_same_function_in_the_trainer(file, name):
    rows = [play([text]) for text in ("a", "bb", "ccc")]  # one call per row, as in a worker
    (source,), _ = in_workers(file, name)
    for sources in zip(*(
        [rewards(*row) for row in rows]
        for rewards in (
            Rewards([FunctionReward(load_function(f"{file}:{name}"))], byte_tokenizer()),
            Rewards([source], byte_tokenizer()),
        )
    ), strict=True):  # fmt: skip
        here, there = sources
        assert here.total.tolist() == there.total.tolist()
        assert (here.dense is None) == (there.dense is None)
        assert here.dense is None or here.dense.tolist() == there.dense.tolist()


def test_an_extra_column_must_have_one_value_for_the_row(file):
    said = values(file, "logs_two", ["x"]).values
    assert "logged 2 values as extra column 'text' for row 0" in str(said[0])


def test_a_column_that_cannot_be_sent_is_told(file):
    said = values(file, "lengths", ["x"], columns={"handle": [sys.stdout]}).values
    assert "row 0 of the batch (episode 100) cannot be given to a worker process: one of handle" in str(said[0])


def test_what_a_function_requires_is_checked_before_any_worker_starts(file):
    (source,), pool = in_workers(file, "sees")
    with pytest.raises(RewardError, match="requires 'answer'"):
        source.score(texts(["x"]))
    assert pool._workers == []


def test_failures_follow_the_policy(file):
    (source,), _ = in_workers(file, "misbehaves", timeout=1.0, count=2)
    rewards = Rewards([source], byte_tokenizer(), on_error=OnError("drop"))
    scores = rewards(*play(["a", "sleep", "leave", "nan", "dddd", "eeeee"]))
    assert scores.total.isnan().tolist() == [False, True, True, True, False, False]
    assert scores.metrics.numbers() == {"reward/misbehaves_failed": 0.5}
    with pytest.raises(RewardError, match="did not answer within"):
        Rewards([source], byte_tokenizer())(*play(["a", "sleep"]))
    with pytest.raises(RewardError, match="It was asked 2 times"):
        Rewards([source], byte_tokenizer(), on_error=OnError("retry", 1))(*play(["a", "leave"]))


# --- How a function gets there


def test_a_function_of_a_module_is_given_by_pickle():
    pool = WorkerPool([function_spec(is_elsewhere, "is_elsewhere", None)], 1, None)
    source = WorkerReward(FunctionReward(is_elsewhere), 0, pool)
    assert source.score(texts([str(os.getpid())])).values == [1.0]


def test_a_function_inside_another_cannot_be_given(file):
    with pytest.raises(RewardError, match=r"cannot be given to worker processes.*at the top of a module.*file.py:name"):
        function_spec(lambda completions: [0.0], "<lambda>", None)


def test_one_that_a_worker_does_not_find_is_told_at_once(file):
    missing = FunctionSpec("here", None, pickle.dumps(is_elsewhere).replace(b"is_elsewhere", b"is_not_there"))
    with pytest.raises(RewardError, match=r"'here' is not to be found from a worker process.*file.py:name"):
        WorkerPool([missing], 1, None).check()


def test_a_file_that_fails_in_a_worker_is_told_at_once(tmp_path):
    path = tmp_path / "rewards.py"
    path.write_text(
        f"import os\nif os.getpid() != {os.getpid()}: raise ValueError('not here')\ndef f(completions): ..."
    )
    with pytest.raises(RewardError, match="failed while loading: ValueError: not here"):
        WorkerPool([function_spec(len, "f", f"{path}:f")], 1, None).check()
    path.write_text("import os\nos._exit(7)")
    with pytest.raises(RewardError, match=r"'f' did not come up \(exit code 7\)"):
        WorkerPool([function_spec(len, "f", f"{path}:f")], 1, None).check()


def test_a_worker_that_never_comes_up_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "STARTUP_SECONDS", 0.3)
    path = tmp_path / "rewards.py"
    path.write_text("import time\ntime.sleep(1000)")
    with pytest.raises(RewardError, match=r"did not come up \(not within 0.3 s\)"):
        WorkerPool([function_spec(len, "f", f"{path}:f")], 1, None).check()


def test_a_worker_imports_neither_torch_nor_transformers():
    code = "import sys, nearstep.rewards.workers.process; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- How workers end


def test_they_end_with_their_pool(file):
    (source,), pool = in_workers(file, "process")
    pids = [int(value) for value in source.score(texts(["x"])).values]
    del source, pool
    assert gone(pids)


@pytest.mark.parametrize("how", [slow(signal.SIGINT), signal.SIGKILL])
def test_they_end_with_the_trainer_even_in_the_middle_of_a_row(file, how, tmp_path):
    root, inside = Path(__file__).parents[2], tmp_path / "inside"
    code = (
        f"import signal, sys; sys.path.insert(0, {str(root)!r})\n"
        # A shell that runs tests in the background has its children ignore the key.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tests.rewards.light import in_workers, texts\n"
        f"(first, second), pool = in_workers({str(file)!r}, 'process', 'tells_and_sleeps', timeout=600.0)\n"
        "print(int(first.score(texts(['x'])).values[0]), flush=True)\n"
        f"second.score(texts([{str(inside)!r}]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as trainer:
        pid = int(trainer.stdout.readline())
        assert comes_true(inside.exists)
        trainer.send_signal(how)
        trainer.wait(60)
        if how == signal.SIGINT:
            assert "KeyboardInterrupt" in trainer.stderr.read()
            assert gone([pid])
        else:  # nobody is left to kill it: the kernel does, a little after the limit
            assert Path("/proc", str(pid)).exists()
            os.kill(pid, signal.SIGALRM)  # what the kernel will send, and the worker must not survive
            assert gone([pid])
