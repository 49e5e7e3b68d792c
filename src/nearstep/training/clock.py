"""Where the seconds of an update go."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from nearstep.common.waiting import WATCHDOG


class Clock:
    """Adds up seconds by phase between two laps. On a GPU it waits for the work that was sent off in a phase."""

    def __init__(
        self,
        device: torch.device,
        now: Callable[[], float] = time.perf_counter,
        begins: Callable[[str], None] = lambda phase: None,
    ) -> None:
        """`begins` is told the name of every phase as it begins."""
        self._begins = begins
        self._device = device
        self._now = now
        self._phases: dict[str, float] = {}
        self._lap_began = now()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the seconds inside towards `phase`."""
        WATCHDOG.phase = phase
        self._begins(phase)
        began = self._now()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._phases[phase] = self._phases.get(phase, 0.0) + self._now() - began

    def lap(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last lap, and the share of each phase in them; what no phase counted is `other`."""
        now = self._now()
        seconds = max(now - self._lap_began, 1e-9)
        shares = {phase: spent / seconds for phase, spent in self._phases.items()}
        shares["other"] = max(0.0, 1.0 - sum(shares.values()))
        self._phases, self._lap_began = {}, now
        return seconds, shares
