"""Who scores rollouts, as the loop and evaluation see them; the rewards room's Rewards is one."""

from typing import Protocol, runtime_checkable

from nearstep.rewards.protocol import EarlyRows
from nearstep.types import Prompts, Rollout, Scores


@runtime_checkable
class RewardModule(Protocol):
    """Scores rollouts, and may begin while they are being generated."""

    def early(self, prompts: Prompts) -> EarlyRows:
        """What rows of `prompts` are told to as they end."""

    def __call__(self, prompts: Prompts, rollout: Rollout, early: EarlyRows | None = None) -> Scores:
        """A score for every row, NaN for one that could not be judged; `early` may have begun."""

    def close(self) -> None:
        """End what is kept running between calls."""
