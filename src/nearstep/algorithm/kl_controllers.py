"""The axis of KL controllers: how much a KL to the reference costs in the next update.

A controller keeps nothing itself. All that it goes by are the coefficient in use and what was measured, both of which
are saved with a run, so a resumed run goes on as it would have.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from nearstep.algorithm.kl import adapted_kl_coef


@dataclass(frozen=True)
class MeasuredKL:
    """What an update showed, over all processes."""

    kl: float  # mean over its episodes of the KL to the reference, in nats: objective/kl
    episodes: int  # episodes of that update
    update: int  # its number, from 1
    updates: int  # updates of the run


@runtime_checkable
class KLController(Protocol):
    """The coefficient of the KL penalty, update by update. Any frozen dataclass with these two members is one."""

    def first(self) -> float:
        """The coefficient of update 1, at least 0."""

    def next(self, coefficient: float, measured: MeasuredKL) -> float:
        """The coefficient of the update after `measured.update`, in which it was `coefficient`; at least 0."""


@dataclass(frozen=True)
class FixedKL:
    """The coefficient stays what it is."""

    coefficient: float

    def first(self) -> float:
        """As given."""
        return self.coefficient

    def next(self, coefficient: float, measured: MeasuredKL) -> float:
        """As given."""
        return self.coefficient


@dataclass(frozen=True)
class AdaptiveKL:
    """The coefficient moves towards what keeps the KL at `target`, over some `horizon` episodes (1909.08593)."""

    start: float
    target: float
    horizon: int

    def first(self) -> float:
        """As given."""
        return self.start

    def next(self, coefficient: float, measured: MeasuredKL) -> float:
        """See `adapted_kl_coef`."""
        return adapted_kl_coef(
            coefficient, measured.kl, target=self.target, horizon=self.horizon, episodes=measured.episodes
        )


@dataclass(frozen=True)
class ScheduledKL:
    """From `start` in the first update to `end` in the last, on a straight line or half a cosine."""

    start: float
    end: float
    shape: Literal["linear", "cosine"] = "linear"

    def first(self) -> float:
        """The start."""
        return self.start

    def next(self, coefficient: float, measured: MeasuredKL) -> float:
        """Depends on the place in the run alone: with t from 0 to 1, start + (end − start)·t, or ·(1 − cos πt) / 2."""
        share = min(measured.update / max(measured.updates - 1, 1), 1.0)
        if self.shape == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share
