"""How the trainer talks with a worker: neither half a message nor a reader that has stopped makes it wait."""

import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from nearstep.common.errors import RewardError

LARGEST_REPLY_BYTES = 16 << 20
PIECE_BYTES = 1 << 18
LENGTH_BYTES = 8  # before every message to a worker


@dataclass(frozen=True)
class RowAnswer:
    """What a function said of one row: its value as JSON has it, and what it logged."""

    value: object
    extras: dict[str, list[object]]
    metrics: dict[str, list[float]]


@dataclass(frozen=True)
class Begun:
    """The worker holds the task with all that reading it imports; the row's time runs from here."""


Reply: TypeAlias = RowAnswer | RewardError


class OddReplyError(Exception):
    """A worker's end is open, but what comes out of it is no reply to its task. The message continues "which ..."."""


class Channel:
    """The trainer's end: length and bytes go out, lines of JSON come in, and no call blocks."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self.end = end
        self._incoming = bytearray()
        self._outgoing = memoryview(b"")

    def fileno(self) -> int:
        """For selectors."""
        return self.end.fileno()

    @property
    def is_sending(self) -> bool:
        """Whether a part of a message is still to be sent."""
        return len(self._outgoing) > 0

    def send(self, message: bytes) -> None:
        """Begin to send; `push` goes on with it."""
        self._outgoing = memoryview(bytes(self._outgoing) + len(message).to_bytes(LENGTH_BYTES) + message)
        self.push()

    def push(self) -> None:
        """Send what the other end takes now."""
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[self.end.send(self._outgoing) :]
        except BlockingIOError:
            pass
        except ConnectionError:  # it has died: reading tells
            self._outgoing = memoryview(b"")

    def line(self) -> bytes | None:
        """The next line, None where it is not there as a whole; EOFError at the end, OddReplyError for a long one."""
        with suppress(BlockingIOError):
            while b"\n" not in self._incoming[-PIECE_BYTES:]:
                piece = self.end.recv(PIECE_BYTES)
                if not piece:
                    raise EOFError
                self._incoming += piece
                if len(self._incoming) > LARGEST_REPLY_BYTES:
                    raise OddReplyError(f"answered with more than {LARGEST_REPLY_BYTES >> 20} MiB")
        end = self._incoming.find(b"\n")
        if end < 0:
            return None
        line = bytes(self._incoming[:end])
        del self._incoming[: end + 1]
        return line

    def is_quiet(self) -> bool:
        """Whether the other end is open and has said nothing unasked."""
        try:
            return self.line() is None and not self._incoming
        except (EOFError, ConnectionError, OddReplyError):
            return False


def read_message(line: bytes, task: int, process: int) -> Begun | Reply:
    """What process `process` says of task number `task`. Raises OddReplyError for anything else."""
    try:
        message: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise OddReplyError("wrote to the pipe of its worker") from None
    match message:
        case {"task": int(number), "process": int(sender)} if (number, sender) != (task, process):
            raise OddReplyError("answered for another row or from another process")
        case {"task": int(), "process": int(), "begun": True}:
            return Begun()
        case {"task": int(), "process": int(), "error": str(text)}:
            return RewardError(text)
        case {"task": int(), "process": int(), "value": value, "extras": dict(extras), "metrics": dict(metrics)} if all(
            isinstance(entries, list) for entries in extras.values()
        ) and all(isinstance(n, int | float) for numbers in _lists(metrics) for n in numbers):
            return RowAnswer(value, extras, metrics)
    raise OddReplyError("wrote to the pipe of its worker")


def _lists(metrics: dict[str, Any]) -> list[list[Any]]:
    return [numbers if isinstance(numbers, list) else [None] for numbers in metrics.values()]
