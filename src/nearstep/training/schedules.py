"""Which networks train on a rollout, in which order, for how many epochs."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Phase:
    """Some epochs over the rollout of `update` in which the policy, the critic, or both take optimizer steps."""

    update: int
    epochs: int
    policy: bool
    critic: bool


@runtime_checkable
class CriticSchedule(Protocol):
    """When the critic trains."""

    def phases(self, update: int) -> list[Phase]:
        """What happens after the rollout of update number `update`, counted from 1."""


@dataclass(frozen=True)
class Joint:
    """Classic PPO: policy and critic take every step together."""

    epochs: int

    def phases(self, update: int) -> list[Phase]:
        """One phase that trains both."""
        return [Phase(update, self.epochs, policy=True, critic=True)]
