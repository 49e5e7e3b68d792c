"""A rank ends with its launcher, however that ends."""

import os
import signal
import subprocess
import sys

import pytest

from tests.rewards.test_workers import comes_true

RANK = """
import os, signal
from nearstep.scale.launcher import end_with_launcher
end_with_launcher()
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
LAUNCHER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"


def state(pid):
    """R, S, T (stopped), Z (ended)…; nothing where it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
@pytest.mark.parametrize("launched", [True, False])
def test_a_stopped_rank_ends_with_a_launcher_that_was_killed(launched):
    environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
    environment |= {"TORCHELASTIC_RUN_ID": "x"} if launched else {}
    with subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, env=environment) as launcher:
        assert launcher.stdout is not None
        rank = int(launcher.stdout.readline())
        assert comes_true(lambda: state(rank) == "T")
        launcher.kill()
        launcher.wait()
        if launched:
            assert comes_true(lambda: state(rank) in ("", "Z"))
        else:  # a process that nobody of torch's launched is left alone
            assert state(rank) == "T"
            os.kill(rank, signal.SIGKILL)
