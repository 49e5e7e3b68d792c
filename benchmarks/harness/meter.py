"""Where seconds and memory go: CPU and wall time and peak memory of every phase of every update."""

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

PHASES = ("generate", "score", "update", "other")


@dataclass
class Spent:
    """What a phase of one update took."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    peak_bytes: int = 0

    def add(self, cpu_seconds: float, wall_seconds: float, peak_bytes: int) -> None:
        """Add a stretch of the same phase."""
        self.cpu_seconds += cpu_seconds
        self.wall_seconds += wall_seconds
        self.peak_bytes = max(self.peak_bytes, peak_bytes)


class Memory(Protocol):
    """What is in use, and the most that was since the last reset."""

    def in_use(self) -> int:
        """Bytes now."""

    def peak(self) -> int:
        """Most bytes since the last call of this method."""


class ResidentMemory:
    """The pages that this process holds, as Linux counts them."""

    def in_use(self) -> int:
        """Bytes now, after what is free was given back to the system."""
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return _status("VmRSS")

    def peak(self) -> int:
        """The high-water mark since the last call."""
        highest = _status("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")
        return highest


class CudaMemory:
    """What torch's allocator holds on the GPU."""

    def in_use(self) -> int:
        """Bytes of living tensors."""
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """The most bytes of living tensors since the last call."""
        torch.cuda.synchronize()
        highest = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return highest


def memory_of(device: str) -> Memory:
    """The memory that matters on a device."""
    return CudaMemory() if device == "cuda" else ResidentMemory()


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


@dataclass
class Meter:
    """A stopwatch that is told when each phase begins. Every `generate` begins an update."""

    memory: Memory
    device: str = "cpu"
    updates: list[dict[str, Spent]] = field(default_factory=list)
    weights_bytes: int = 0
    _phase: str | None = None
    _began: tuple[float, float] = (0.0, 0.0)

    def start(self) -> None:
        """Models are loaded and nothing has run: what memory is counted above."""
        self.weights_bytes = self.memory.in_use()
        self.memory.peak()

    def mark(self, phase: str | None) -> None:
        """The phase that begins now; None when all is done."""
        if phase == self._phase:
            return
        if self.device == "cuda":
            torch.cuda.synchronize()
        now, peak = (time.process_time(), time.perf_counter()), self.memory.peak()
        if self._phase is not None:
            cpu, wall = (after - before for before, after in zip(self._began, now, strict=True))
            self.updates[-1].setdefault(self._phase, Spent()).add(cpu, wall, peak)
        if phase == "generate" or not self.updates:
            self.updates.append({})
        self._phase, self._began = phase, now

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """A phase of nearstep's loop, in the place of its clock."""
        self.mark("score" if phase == "experience" else phase)
        yield
        self.mark("other")

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds of the update, for the loop's own report; next to none before the first."""
        spent = self.updates[-1] if self.updates else {}
        seconds = max(sum(one.wall_seconds for one in spent.values()), 1e-9)
        return seconds, {phase: one.wall_seconds / seconds for phase, one in spent.items()}

    def record(self) -> dict[str, object]:
        """What was measured, as JSON."""
        return {
            "weights_bytes": self.weights_bytes,
            "updates": [{phase: vars(spent) for phase, spent in update.items()} for update in self.updates],
        }
