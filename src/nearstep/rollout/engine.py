"""What an engine must do to play episodes."""

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias, TypeGuard, runtime_checkable

from nearstep.models.roles import Policy
from nearstep.types import Prompts, Rollout

RowEnded: TypeAlias = Callable[[int, list[int], bool], None]  # row, ids of its response, whether it is finished


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


@runtime_checkable
class TellingEngine(RolloutEngine, Protocol):
    """An engine that tells of every row as it ends, so that rewards may begin while others are being generated."""

    def generate(
        self,
        prompts: Prompts,
        *,
        top_k: int = 0,
        limits: Sequence[int] | None = None,
        row_ended: RowEnded | None = None,
    ) -> Rollout:
        """As RolloutEngine.generate; calls `row_ended` once for a row that has ended, with what the rollout will hold.

        The call comes from the thread that `generate` runs in, and returns at once. Rows may be left out.
        """


def tells_of_rows(engine: RolloutEngine) -> TypeGuard[TellingEngine]:
    """Whether the engine's `generate` takes `row_ended`."""
    return "row_ended" in inspect.signature(engine.generate).parameters


def generate(engine: RolloutEngine, prompts: Prompts, row_ended: RowEnded, *, top_k: int = 0) -> Rollout:
    """Let the engine generate, and tell of rows as they end if it can."""
    if tells_of_rows(engine):
        return engine.generate(prompts, top_k=top_k, row_ended=row_ended)
    return engine.generate(prompts, top_k=top_k)
