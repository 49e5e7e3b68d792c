"""Which processes make up a run, and what became of one that does not answer."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from nearstep.common.waiting import listed

PeerState: TypeAlias = Literal["runs", "stopped", "gone", "elsewhere"]
GONE_SECONDS = 1.0  # between the end of a connection and the end of the process that held it


@dataclass(frozen=True)
class Peer:
    """A process of the run. A process id is given anew in time; together with the start it names one process."""

    rank: int
    host: str
    machine: str  # where its process id means something: containers may share a host's name
    process: int
    started: str  # in ticks of the kernel; empty where there is no /proc

    @staticmethod
    def here(rank: int) -> "Peer":
        """This process."""
        return Peer(rank, socket.gethostname(), _machine(), os.getpid(), _stat(os.getpid())[1])

    @property
    def state(self) -> PeerState:
        """What it does now."""
        if self.machine != _machine():
            return "elsewhere"
        if not self.started:
            with suppress(ProcessLookupError):
                os.kill(self.process, 0)
                return "runs"
            return "gone"
        letter, started = _stat(self.process)
        if started != self.started or letter in "ZX":
            return "gone"
        return "stopped" if letter in "Tt" else "runs"

    def __str__(self) -> str:
        words: dict[PeerState, str] = {"runs": "", "stopped": ", stopped", "gone": ", gone", "elsewhere": ""}
        return f"rank {self.rank} (process {self.process} on {self.host}{words[self.state]})"


def who_is_gone(peers: Sequence[Peer], seconds: float = 0.0) -> str | None:
    """A sentence about processes that have ended; looks for so many seconds."""
    until = time.monotonic() + seconds
    while not (gone := [peer for peer in peers if peer.state == "gone"]):
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)
    return f"{listed([str(peer) for peer in gone])} ended while others needed it"


def end_stopped(peers: Sequence[Peer]) -> None:
    """Kill those that are stopped: they hear no other signal, and a launcher would wait for them."""
    for peer in peers:
        if peer.state == "stopped":
            with suppress(OSError):
                os.kill(peer.process, signal.SIGKILL)


@cache
def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return socket.gethostname()


def _stat(process: int) -> tuple[str, str]:
    """State and start of a process; empty where it is gone, or where there is no /proc."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
