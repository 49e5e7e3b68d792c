"""What trainer and generation process say to each other: one message after the other, plain values and tensors.

No pickle crosses: a message is a line of JSON and, where it has tensors, a safetensors blob.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeAlias

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

LENGTHS = struct.Struct("<IQ")  # bytes of JSON, bytes of tensors
PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Setup:
    """The first message to the generation process: all that it is made of."""

    folder: str  # of the policy as it is now
    weights: list[list[Any]]  # name, shape and type of each that will be sent, in the order of the shared memory
    dtype: str
    autocast: bool
    device: str
    vocabulary: int | None
    trusted_code: list[str] | None
    engine: str
    engine_settings: dict[str, Any]
    generation: dict[str, Any]
    chunk_length: int
    threads: int
    wait_seconds: float | None


@dataclass(frozen=True)
class NewRows:
    """Rows to be answered, in this order."""

    episodes: list[int]
    ids: list[list[int]]
    inputs: list[Any]
    columns: dict[str, list[Any]]


@dataclass(frozen=True)
class NewWeights:
    """The shared memory holds the weights of this version."""

    version: int


@dataclass(frozen=True)
class Abandon:
    """These rows are wanted no longer."""

    episodes: list[int]


@dataclass(frozen=True)
class Ready:
    """The process is up."""


@dataclass(frozen=True)
class Loaded:
    """The weights of this version are copied: the shared memory may be written again."""

    version: int


@dataclass(frozen=True)
class RowsBegun:
    """These rows get their first token from the weights of this version."""

    episodes: list[int]
    version: int


@dataclass(frozen=True)
class FinishedRow:
    """A row that has ended, prompt and response, and which weights sampled each of its actions."""

    episode: int
    finished: bool  # by a stop token
    tokens: Tensor
    is_action: Tensor
    logprobs: Tensor
    versions: Tensor
    top_ids: Tensor | None = None
    top_logprobs: Tensor | None = None


@dataclass(frozen=True)
class Worked:
    """Seconds since the last such message in which the process generated, and in which it had nothing to do."""

    busy: float
    idle: float


@dataclass(frozen=True)
class ProcessFailed:
    """The process ends, for this reason."""

    problem: str


@dataclass(frozen=True)
class Closed:
    """The other end is closed; nothing says so but the line itself."""


ProcessMessage: TypeAlias = (
    Setup | NewRows | NewWeights | Abandon | Ready | Loaded | RowsBegun | FinishedRow | Worked | ProcessFailed | Closed
)
KINDS: dict[str, Callable[..., ProcessMessage]] = {
    kind.__name__: kind
    for kind in (Setup, NewRows, NewWeights, Abandon, Ready, Loaded, RowsBegun, FinishedRow, Worked, ProcessFailed)
}


def encode(message: ProcessMessage) -> bytes:
    """A message as it crosses the line. Raises TypeError for values that JSON does not have."""
    tensors = {name: value.clone() for name, value in vars(message).items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in vars(message).items() if name not in tensors}
    text = json.dumps([type(message).__name__, plain]).encode()
    blob = save_tensors(tensors) if tensors else b""
    return LENGTHS.pack(len(text), len(blob)) + text + blob


def decode(text: bytes, blob: bytes) -> ProcessMessage:
    """The inverse of `encode`, without the lengths."""
    kind, plain = json.loads(text)
    tensors = load_tensors(blob) if blob else {}
    return KINDS[kind](**plain, **tensors)


@dataclass
class MessageLine:
    """One end of the line. A thread takes what comes, so that neither side waits for the other to listen."""

    end: socket.socket
    coming: SimpleQueue[ProcessMessage] = field(default_factory=SimpleQueue)

    def __post_init__(self) -> None:
        threading.Thread(target=self._listen, name="generation", daemon=True).start()

    def send(self, message: ProcessMessage) -> None:
        """Send a message. Raises OSError where the other end is closed."""
        self.end.sendall(encode(message))

    def close(self) -> None:
        """Close this end; whoever listens at the other hears it."""
        with suppress(OSError):  # the other end was faster
            self.end.shutdown(socket.SHUT_RDWR)
        self.end.close()

    def _listen(self) -> None:
        try:
            while True:
                text_bytes, blob_bytes = LENGTHS.unpack(self._exactly(LENGTHS.size))
                self.coming.put(decode(self._exactly(text_bytes), self._exactly(blob_bytes)))
        except (OSError, EOFError):
            self.coming.put(Closed())

    def _exactly(self, size: int) -> bytes:
        content = bytearray()
        while len(content) < size:
            piece = self.end.recv(min(PIECE_BYTES, size - len(content)))
            if not piece:
                raise EOFError
            content += piece
        return bytes(content)
