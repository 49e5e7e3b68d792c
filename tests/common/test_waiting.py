"""Whatever is awaited has a name, a line at half its limit, and an error at its end, and nothing else does."""

import asyncio
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch

from nearstep.common.errors import LostProcessError, TrainingError, WaitError
from nearstep.common.waiting import WATCHDOG, Wait, Watchdog, closing_soon, listed, waiting
from tests.checkpoint.saved_runs import trainer_of
from tests.lanes import slow
from tests.rewards.light import hangs
from tests.rewards.test_workers import comes_true
from tests.scale.test_launcher import state


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    """Four tenths of a second for each wait; the line at half comes well before its end."""
    monkeypatch.setattr(WATCHDOG, "limit_seconds", 0.4)


def test_a_wait_is_told_of_at_half_its_limit_and_ends_at_it(capfd):
    began, said = time.monotonic(), r"without a sign of the moon: rows 3, 7, which is the limit \(wait_timeout"
    with pytest.raises(WaitError, match=said), waiting("the moon", lambda: "rows 3, 7"):
        time.sleep(30)
    assert time.monotonic() - began < 20  # it was interrupted
    assert re.search(r"0\.2\d* s without a sign of the moon: rows 3, 7; the limit is 0\.4 s", capfd.readouterr().err)


def sleep_and_fail():
    """What user code does with an interruption."""
    try:
        time.sleep(30)
    except TrainingError:
        raise KeyError("moon") from None


def test_whoever_swallows_the_interruption_ends_all_the_same():
    with pytest.raises(WaitError, match="the moon"), waiting("the moon"), suppress(Exception):
        time.sleep(30)


def test_what_the_interrupted_makes_of_it_is_its_cause():
    with pytest.raises(WaitError) as raised, waiting("the moon"):
        sleep_and_fail()
    assert isinstance(raised.value.__cause__, KeyError)


def test_other_errors_pass():
    with pytest.raises(KeyError), waiting("the moon"):
        raise KeyError


class Large:
    """Its text would be that of whole models."""

    shown = 0

    def __repr__(self):
        self.shown += 1
        return ""

    def to_come(self):
        return ""


def test_what_is_awaited_is_never_written_out():
    """signal.getsignal makes a text of the handler, and the handler knows all that is awaited."""
    large = Large()
    with waiting("the moon", large.to_come), waiting("the tide"):
        pass
    assert not large.shown


def look(dog, seconds):
    """Let the watchdog live through so many seconds."""
    for _ in range(round(seconds / 0.1)):
        dog._look(0.1)


def test_a_sign_of_life_begins_the_limit_anew_and_the_innermost_wait_counts(capfd):
    dog = Watchdog()
    outer, inner = (Wait(name, 10.0, str, keeps_own_limit=False) for name in ("outer", "inner"))
    dog._waits = [outer]
    look(dog, 4)
    outer.alive()
    look(dog, 4)
    assert outer.seconds == pytest.approx(4)
    dog._waits = [outer, inner]
    look(dog, 3)
    assert (outer.seconds, inner.seconds) == (pytest.approx(4), pytest.approx(3))
    dog.end(inner)
    assert outer.seconds == 0
    assert capfd.readouterr().err == ""


def test_whoever_keeps_a_limit_is_told_of_and_pauses_the_others_within_it(capfd):
    dog = Watchdog()
    waits = [Wait("reward", 10.0, str, keeps_own_limit=False), Wait("server", 2.0, str, keeps_own_limit=True)]
    dog._waits = waits
    look(dog, 3.9)
    assert capfd.readouterr().err.count("without a sign of server; the limit is 2 s") == 1
    assert waits[0].seconds == 0
    look(dog, 4)
    assert waits[0].seconds > 3  # what should keep the limit hangs itself


def test_many_requests_to_one_server_are_told_of_in_one_line(capfd):
    dog = Watchdog()
    dog._waits = [Wait(what, 2.0, str, keeps_own_limit=True) for what in ["judge"] * 5 + ["reward"]]
    look(dog, 1.5)
    said = capfd.readouterr().err
    assert (said.count("sign of judge"), said.count("sign of reward")) == (1, 1)
    assert "before the first update" not in said  # there is no run
    dog.begin_run(5.0)
    dog._waits = [Wait("judge", 2.0, str, keeps_own_limit=True)]
    look(dog, 1.5)
    assert "before the first update: 1" in capfd.readouterr().err


def test_without_a_limit_nothing_ends(monkeypatch):
    monkeypatch.setattr(WATCHDOG, "limit_seconds", None)
    with waiting("the moon") as wait:
        assert wait not in WATCHDOG._waits


def test_a_wait_in_another_thread_is_interrupted_there():
    caught = []

    def work():
        try:
            with waiting("the moon"):
                for _ in range(3000):
                    time.sleep(0.01)
        except WaitError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert "the moon" in str(caught[0])


ENDS = """
import ctypes, subprocess, sys, time
from nearstep.common.waiting import WATCHDOG, waiting
WATCHDOG.limit_seconds = 1.0
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(child.pid, flush=True)
with waiting("the moon"):
    end = time.monotonic() + 60
    while ctypes.CDLL(None).usleep(100_000_000) and time.monotonic() < end:  # no Python runs in here
        pass
"""


def test_code_that_does_not_hear_is_ended_with_its_children():
    # A signal ends one sleep of the kernel; masked, as in a library's own threads, it is not heard at all.
    script = ENDS.replace("end = ", "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGURG]); end = ")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "without a sign of the moon, which is the limit" in done.stderr
    assert comes_true(lambda: state(int(done.stdout)) in ("", "Z"))


def test_a_run_that_has_lost_what_it_needs_is_interrupted(monkeypatch):
    monkeypatch.setattr(WATCHDOG, "guard", lambda: "rank 1 ended")
    with pytest.raises(LostProcessError, match=r"rank 1 ended\. What it said last"), WATCHDOG.guarded():
        sleep_and_fail()
    with WATCHDOG.guarded():
        pass  # over before anybody looked


def test_a_connection_that_ends_is_told_by_the_process_that_held_it(monkeypatch):
    """As in a pass of divided layers, where a collective fails at once and nobody has looked yet."""
    looks = iter([None, "rank 1 ended"])
    monkeypatch.setattr(WATCHDOG, "guard", lambda: next(looks))
    with pytest.raises(LostProcessError, match="rank 1 ended"), WATCHDOG.guarded():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:12698")
    monkeypatch.setattr(WATCHDOG, "guard", lambda: None)
    with pytest.raises(RuntimeError, match="something else"), WATCHDOG.guarded():
        raise RuntimeError("something else")


def test_time_in_which_the_process_was_stopped_does_not_count():
    script = (
        "import time\nfrom nearstep.common.waiting import WATCHDOG, waiting\nWATCHDOG.limit_seconds = 3.0\n"
        "with waiting('the moon'):\n    print('begun', flush=True)\n    input()\nprint('done')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(19)  # SIGSTOP
        time.sleep(4)
        process.send_signal(18)
        time.sleep(0.8)  # in which the watchdog looks
        assert process.communicate("\n")[0] == "done\n"


def test_closing_is_a_wait():
    class Hangs:
        def close(self):
            time.sleep(30)

    with pytest.raises(WaitError, match="engine \\(it is closed\\)"), closing_soon(Hangs(), "engine"):
        pass


def test_many_names_are_cut():
    assert listed([*range(20)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"


async def never(completions, **columns):
    await asyncio.sleep(60)


class Engine:
    """The engine of a run, which hangs in one of its calls."""

    def __init__(self, engine, call):
        self.engine, self.call = engine, call

    def capabilities(self):
        return self.engine.capabilities()

    def load(self, policy, version):
        self.engine.load(policy, version)
        time.sleep(60 if self.call == "load" else 0)

    def generate(self, prompts, settings, row_ended=None):
        if self.call == "generate":
            row_ended(0, [1], True)
            time.sleep(60)
        return self.engine.generate(prompts, settings, row_ended)

    def close(self):
        self.engine.close()


@pytest.mark.parametrize(("given", "changed", "said"), [
    ({"reward_funcs": hangs}, {}, "update 1 (score): * without a sign of reward hangs: rows 0 to 7 of the batch"),
    slow(
        ({"reward_funcs": never}, {}, "update 1 (score): * without a sign of rewards never: rows 0 to 7 of the batch")
    ),
    ({"reward_funcs": hangs}, {"reward_workers": 1}, "of reward functions in workers: hangs: 8 of 8 rows are to come"),
    slow(({"engine": "load"}, {}, "update 1 (generate): * engine Engine (it takes over the weights of update 1)")),
    ({"engine": "generate"}, {}, "engine Engine (8 responses): 7 are to come: rows 1, 2, 3, 4, 5, 6, 7"),
])  # fmt: skip
def test_whatever_hangs_in_a_run_is_named(tmp_path, monkeypatch, capfd, given, changed, said):
    engine = given.pop("engine", None)
    trainer = trainer_of(tmp_path, wait_timeout_seconds=1.5, given=given, **changed)
    if engine:
        object.__setattr__(trainer.recipe, "engine", Engine(trainer.recipe.engine, engine))
    parts = [re.escape(part) for part in said.split("*")]
    with pytest.raises(WaitError, match=".*".join(parts)):
        trainer.train()
    assert re.search(".*".join(parts) + ".*; the limit is 1.5 s", capfd.readouterr().err)


@pytest.mark.slow
def test_a_save_that_hangs_is_named(tmp_path, monkeypatch):
    from nearstep.checkpoint import files

    trainer = trainer_of(tmp_path, wait_timeout_seconds=1.5)
    written = threading.Event()
    monkeypatch.setattr(files, "sync", lambda path: written.wait(30))
    with pytest.raises(WaitError, match=r"the checkpoint that is being written: .*\.checkpoint-1\.unfinished"):
        trainer.train()
    written.set()
    assert torch.isfinite(next(trainer.model.parameters())).all()
