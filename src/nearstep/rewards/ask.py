"""What happens when a reward fails: the run ends, the row is asked about again, or it is dropped; never a made-up 0.

A failure is an exception, a value that is no finite number, an answer of the wrong length, a time limit, or the end of
a worker process. A source that fails as a whole says nothing of which row was to blame: where rows are dropped, it is
asked again row by row, so that only the rows that fail alone are lost.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from nearstep.common.errors import RewardError
from nearstep.common.waiting import waiting
from nearstep.rewards.batch import Answer, RewardBatch
from nearstep.rewards.protocol import NOTHING_BEGUN, HeadStart, RewardSource
from nearstep.rewards.remote.event_loop import EventLoop
from nearstep.rewards.values import Value, read_entries

ErrorPolicy: TypeAlias = Literal["raise", "retry", "drop"]


@dataclass(frozen=True)
class OnError:
    """What happens on failure: `raise` at the first, `retry` up to `retries` times and then raise, or `drop`."""

    policy: ErrorPolicy = "raise"
    retries: int = 2
    largest_failed_share: float = 0.5  # drop: of the rows of a batch; more is no accident


@dataclass
class SourceResult:
    """What a source has returned for every row so far: a value, or the error in its place."""

    name: str
    values: list[Value | RewardError]
    extras: dict[str, list[object]] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    failed: set[int] = field(default_factory=set)  # rows that were dropped, or asked about again

    @property
    def open_rows(self) -> list[int]:
        """Rows without a value."""
        return [row for row, value in enumerate(self.values) if isinstance(value, RewardError)]

    def note(self, rows: Sequence[int], values: Sequence[Value | RewardError], answer: Answer) -> None:
        """Keep what was returned for these rows."""
        for row, value in zip(rows, values, strict=True):
            self.values[row] = value
        for column, logged in answer.extras.items():
            if len(logged) != len(rows):
                raise RewardError(
                    f"reward {self.name!r} logged {len(logged)} values as extra column {column!r} "
                    f"for {len(rows)} completions: log one for each."
                )
            kept = self.extras.setdefault(column, [None] * len(self.values))
            for row, entry in zip(rows, logged, strict=True):
                kept[row] = entry
        for metric, numbers in answer.metrics.items():
            self.metrics.setdefault(metric, []).extend(numbers)


@dataclass(frozen=True)
class Call:
    """One question to one source: these rows of the batch, by index."""

    source: int
    rows: Sequence[int]
    begun: HeadStart | None = None  # what the source has done of them already


@dataclass(frozen=True)
class SourceCaller:
    """All sources, and how they are asked."""

    sources: Sequence[RewardSource]
    names: Sequence[str]
    on_error: OnError
    event_loop: EventLoop

    def ask(self, batch: RewardBatch, begun: Mapping[int, HeadStart] = NOTHING_BEGUN) -> list[SourceResult]:
        """Ask every source about every row; `begun` holds what some, by number, have done of that already.

        Raises RewardError as the policy says, or if over half the rows failed.
        """
        not_asked = RewardError("nothing was said of this row")
        results = [SourceResult(name, [not_asked] * len(batch)) for name in self.names]
        first = [Call(source, range(len(batch)), begun.get(source)) for source in range(len(results))]
        failed_whole = self._ask_sources(first, batch, results)
        if self.on_error.policy == "raise":
            _raise_first(results)
        elif self.on_error.policy == "retry":
            self._retry(batch, results)
        else:
            one_by_one = [Call(source, [row]) for source in failed_whole for row in range(len(batch))]
            self._ask_again(one_by_one if len(batch) > 1 else [], batch, results)
            _drop(results, len(batch), self.on_error.largest_failed_share)
        return results

    def _retry(self, batch: RewardBatch, results: list[SourceResult]) -> None:
        for _ in range(self.on_error.retries):
            again = [Call(source, answers.open_rows) for source, answers in enumerate(results) if answers.open_rows]
            self._ask_again(again, batch, results)
        _raise_first(results, f" It was asked {self.on_error.retries + 1} times.")

    def _ask_again(self, calls: Sequence[Call], batch: RewardBatch, results: list[SourceResult]) -> None:
        for call in calls:
            results[call.source].failed.update(call.rows)
        self._ask_sources(calls, batch, results)

    def _ask_sources(self, calls: Sequence[Call], batch: RewardBatch, results: list[SourceResult]) -> list[int]:
        """Put the questions, plain sources one after another, awaitables together; returns who failed as a whole."""
        parts = [batch if len(call.rows) == len(batch) else batch.select(call.rows) for call in calls]
        answers = [self._begin(call, part) for call, part in zip(calls, parts, strict=True)]
        awaited = [(call, begun) for call, begun in zip(calls, answers, strict=True) if isinstance(begun, Awaitable)]
        names = dict.fromkeys(self.names[call.source] for call, _ in awaited)
        with waiting(f"rewards {', '.join(names)}", batch.span):
            arrived = iter(self.event_loop.gather([begun for _, begun in awaited]))
        failed_whole = []
        for call, part, begun in zip(calls, parts, answers, strict=True):
            answer = next(arrived) if isinstance(begun, Awaitable) else begun
            to = results[call.source]
            try:
                if isinstance(answer, RewardError):
                    raise answer
                to.note(call.rows, read_entries(answer.values, part, to.name), answer)
            except RewardError as error:
                if self.on_error.policy == "raise":
                    raise
                to.note(call.rows, [error] * len(call.rows), Answer(None))
                failed_whole.append(call.source)
        return failed_whole

    def _begin(self, call: Call, part: RewardBatch) -> Answer | RewardError | Awaitable[Answer | RewardError]:
        source = self.sources[call.source] if call.begun is None else call.begun
        try:
            with waiting(f"reward {self.names[call.source]}", part.span):
                answer = source.score(part)
        except RewardError as error:
            if self.on_error.policy == "raise":
                raise
            return error
        return answer if isinstance(answer, Answer) or self.on_error.policy == "raise" else _outcome(answer)


async def _outcome(waiting: Awaitable[Answer]) -> Answer | RewardError:
    """The error in place of the answer, so that one that fails does not cancel the others."""
    try:
        return await waiting
    except RewardError as error:
        return error


def _raise_first(results: Sequence[SourceResult], addition: str = "") -> None:
    for answers in results:
        for row in answers.open_rows:
            error = answers.values[row]
            assert isinstance(error, RewardError)
            if not addition:
                raise error
            raise RewardError(f"{error}{addition}") from error


def _drop(results: Sequence[SourceResult], rows: int, largest_share: float) -> None:
    """Count the rows that are lost; raises RewardError if they are too many."""
    lost: set[int] = set().union(*(answers.open_rows for answers in results))
    for answers in results:
        answers.failed.update(answers.open_rows)
    if len(lost) > largest_share * rows:
        worst = max(results, key=lambda answers: len(answers.open_rows))
        first = worst.values[worst.open_rows[0]]
        raise RewardError(
            f"{len(lost)} of {rows} rows have no reward, more than may be dropped of a batch. "
            f"Reward {worst.name!r} failed on {len(worst.open_rows)} of them, first so: {first}"
        ) from (first if isinstance(first, RewardError) else None)
