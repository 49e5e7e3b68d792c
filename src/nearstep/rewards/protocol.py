"""What a reward source is, what it may begin while rows are still generated, and what the loop sees of all sources."""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.decoding import reward_row
from nearstep.types import Prompts, Rollout, Scores


@runtime_checkable
class RewardSource(Protocol):
    """Anything that scores a batch: at once, or by an awaitable, awaited together with those of other sources."""

    @property
    def name(self) -> str:
        """Under which its part of the reward is reported."""

    def score(self, batch: RewardBatch) -> Answer | Awaitable[Answer]:
        """One value per row, None where the reward does not apply."""


@runtime_checkable
class HeadStart(Protocol):
    """What a source has begun of one batch."""

    def add(self, row: RewardBatch) -> None:
        """Begin with a row: a batch of one, with its place in the whole. Returns at once, and raises nothing."""

    def score(self, batch: RewardBatch) -> Answer | Awaitable[Answer]:
        """The answer to the whole batch, the same as without a head start, whichever rows were added before."""

    def cancel(self) -> None:
        """Leave nothing running: the batch will not be scored, or not to its end."""


@runtime_checkable
class StartsEarly(Protocol):
    """A source of rewards that can begin with single rows of a batch; it waits for others, not for this processor."""

    def begin_early(self, rows: int) -> HeadStart:
        """Get ready for a batch of so many rows."""


NOTHING_BEGUN: Mapping[int, HeadStart] = MappingProxyType({})


class EarlyRows:
    """Hands the rows of one batch to the sources that start early, as they end; cancels all if an error passes by."""

    def __init__(
        self,
        prompts: Prompts,
        tokenizer: PreTrainedTokenizerBase,
        state: Callable[[], object],
        head_starts: Mapping[int, HeadStart],
    ) -> None:
        """`head_starts` are those of the sources with these numbers; `state()` is the trainer's state."""
        self.head_starts = head_starts
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._state = state

    def __enter__(self) -> "EarlyRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            for head_start in self.head_starts.values():
                head_start.cancel()

    def __call__(self, row: int, completion_ids: list[int], finished: bool) -> None:
        """Row `row` of the prompts has ended with these tokens, the last one a stop token where it is `finished`."""
        if self.head_starts:
            episode = reward_row(self._prompts, row, completion_ids, finished, self._tokenizer, self._state())
            for head_start in self.head_starts.values():
                head_start.add(episode)


@runtime_checkable
class RewardModule(Protocol):
    """Scores rollouts, and may begin while they are being generated."""

    def early(self, prompts: Prompts) -> EarlyRows:
        """The callback for rows of `prompts` that have ended."""

    def __call__(self, prompts: Prompts, rollout: Rollout, early: EarlyRows | None = None) -> Scores:
        """A score for every row, NaN for one that could not be scored; `early` may have begun."""

    def close(self) -> None:
        """End what is kept running between calls."""
