"""What an engine must do to play episodes."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from nearstep.models.roles import Policy
from nearstep.types import Prompts, Rollout


@runtime_checkable
class RolloutEngine(Protocol):
    """Samples responses from a policy and records what it did."""

    def load(self, policy: Policy, version: int) -> None:
        """Take over the policy's weights as they are now; `version` is the number of the update that will use them.

        Whatever the engine computed from older weights (a prefix cache, say) must be gone afterwards.
        """

    def generate(self, prompts: Prompts, *, top_k: int = 0, limits: Sequence[int] | None = None) -> Rollout:
        """Sample one response for every row of `prompts`, in order.

        Random numbers of a row come from the stream of its episode number alone, so neither the order of rows nor their
        distribution over processes changes a response. `top_k` asks for the most probable tokens at every action,
        `limits` sets the most tokens of each row's response where they shall differ from the engine's own limit.
        """
