"""What a process owes to the launcher that started it: it ends with it, however that ends."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def end_with_launcher() -> None:
    """Have the kernel kill this process once torchrun (or accelerate launch) has gone, even by SIGKILL.

    Without it ranks would be left behind, which wait for each other or are stopped. Nothing on systems but Linux.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with(os.getppid())


def end_with(parent: int) -> None:
    """Have the kernel kill this process once the one that started it has gone. Nothing on systems but Linux."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went in between
        os.kill(os.getpid(), signal.SIGKILL)
