"""Rollouts that are sampled ahead: prompts are given out before their turn, and a batch is what is finished by then."""

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nearstep.common.waiting import listed, waiting
from nearstep.metrics import Metrics
from nearstep.rollout.ahead.link import AnswersAhead
from nearstep.rollout.ahead.messages import FinishedRow, RowsBegun, Worked
from nearstep.rollout.ahead.rows import as_tensors, from_tensors
from nearstep.rollout.ahead.window import GroupUnderWay, StalenessRule, choose
from nearstep.rollout.engine import GenerationSettings
from nearstep.training.clock import Clock
from nearstep.training.finished_ahead import BatchAhead, GroupAhead, newest_alike
from nearstep.training.joining import join_prompts, select_prompts
from nearstep.types import Prompts, Rollout


@runtime_checkable
class PromptDraws(Protocol):
    """Where prompts are drawn from, a batch at a time; the data room's PromptSource is one."""

    def batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[Prompts]:
        """See PromptBatches.batches."""

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """See PromptBatches.numbers."""

    def again(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """See PromptBatches.again."""


@dataclass
class RolloutStream:
    """Gives out prompts up to `rule.capacity` ahead, and yields as a batch the prompts of groups that have ended.

    It stands in the place of the prompts: the batch of an update is known once its answers are. The weights are handed
    over before each wait, so that the process samples with the newest while the trainer waits, and while it updates.
    """

    draws: PromptDraws
    link: AnswersAhead
    rule: StalenessRule
    num_generations: int
    clock: Clock
    device: torch.device
    _under_way: list[GroupAhead] = field(default_factory=list)
    _reserve: deque[GroupAhead] = field(default_factory=deque)  # drawn, and not given out
    _batch: BatchAhead | None = None  # that was yielded last
    _origin: int | None = None  # prompts drawn before the first; None before the run begins
    _drawn: int = 0  # prompts drawn so far
    _changes: list[int] = field(default_factory=list)  # versions whose weights differ from those before
    _moved: bool = True  # whether the weights have changed since they were published last
    _source: Iterator[Prompts] = field(default_factory=lambda: iter(()))
    _worked: list[Worked] = field(default_factory=list)
    _recalled: tuple[Mapping[str, Any], list[FinishedRow]] | None = None

    def batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[Prompts]:
        """The batches of updates `after` + 1 to `until`, each once its answers are there."""
        for batch in self.whole_batches(after=after, until=until, played=played):
            yield batch.prompts

    def whole_batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[BatchAhead]:
        """See `batches`; with the answers."""
        self._begin(after, played)
        for update in range(after + 1, until + 1):
            with self.clock("generate"):
                self._publish(update)
                self._give_out(until - update + 1)
                self._batch = self._wait_for(update)
            yield self._batch
        self.close()

    def more(self, places: Sequence[int]) -> Prompts:
        """Nothing refills a batch that was sampled ahead; what asks for it is refused before the run."""
        raise AssertionError(f"{len(places)} prompts were asked for beside those that were sampled ahead")

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """Of episodes of the batch that was yielded last: by which numbers `again` finds their prompts."""
        assert self._batch is not None, "a batch comes before its numbers"
        return self._batch.numbers(episodes)

    def again(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """See PromptBatches.again."""
        return self.draws.again(numbers, episodes)

    def seen(self, means: Sequence[float]) -> None:
        """Samplers that learn from scores are refused before the run."""

    def rollout(self, prompts: Prompts, settings: GenerationSettings) -> Rollout:
        """The answers to the batch that was yielded last, checked as any engine's."""
        assert self._batch is not None, "a batch comes before its answers"
        assert prompts.episodes == self._batch.prompts.episodes
        return self._batch.rollout(prompts, settings, self.device)

    @property
    def dropped(self) -> int:
        """Rows that were left behind for the batch that was yielded last."""
        return 0 if self._batch is None else self._batch.dropped

    def metrics(self, rollout: Rollout) -> Metrics:
        """How old a rollout is, and who has waited for whom; `reports/metrics.py` has the meanings."""
        assert self._batch is not None, "a batch comes before its metrics"
        return self._batch.metrics(rollout)

    def memory(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a run that goes on after the update just done has to know: plain values, and finished rows."""
        self._hear(None)
        first = min([*(group.number for group in self._under_way), self._drawn - len(self._reserve)])
        values = {
            "origin": self._origin or 0,
            "drawn": self._drawn,
            "first": first,
            "reserve": len(self._reserve),
            "under_way": [group.number for group in self._under_way],
            "changes": self._changes,
            "moved": self._moved or self.link.has_moved(),
        }
        return values, as_tensors([row for group in self._under_way for row in group.rows.values()])

    def recall(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Begin as `memory` says: rows that had ended are there, and the others will be asked for again."""
        self._recalled = values, list(from_tensors(tensors))

    def close(self) -> None:
        """End the generation process. Rows that it has not finished are begun anew, should the run go on."""
        if self.link.runs:
            self._moved = self.link.has_moved()
            self.link.close()

    def _begin(self, after: int, played: int | None) -> None:
        """Know which groups are under way, and start the process with what is missing of them."""
        if self._batch is not None and self._batch.update > after:  # it was broken off
            self._under_way = sorted([*self._batch.groups, *self._under_way], key=lambda group: group.number)
        self._batch = None
        if self._recalled is not None:
            self._rebuild(*self._recalled)
            self._recalled = None
        elif self._origin is None:
            size = self.rule.groups
            self._origin = self._drawn = after * size if played is None else played
        self._source = self.draws.batches(after=0, until=sys.maxsize, played=self._drawn)
        if not self.link.runs:
            self.link.start()
            for group in self._under_way:
                group.begun = min((int(row.versions.min()) for row in group.rows.values()), default=None)

    def _rebuild(self, values: Mapping[str, Any], rows: list[FinishedRow]) -> None:
        """Draw again what was drawn, by the same borders of batches."""
        size, self._origin = self.rule.groups, values["origin"]
        self._drawn = self._origin + (values["first"] - self._origin) // size * size
        self._source = self.draws.batches(after=0, until=sys.maxsize, played=self._drawn)
        self._under_way, self._reserve = [], deque()
        while self._drawn < values["drawn"]:
            self._draw()
        groups, wanted = [*self._reserve], set(values["under_way"])
        self._under_way = [group for group in groups if group.number in wanted]
        self._reserve = deque(group for group in groups if group.number >= values["drawn"] - values["reserve"])
        by_episode = {episode: group for group in self._under_way for episode in group.prompts.episodes}
        for row in rows:
            by_episode[row.episode].rows[row.episode] = row
        self._changes, self._moved = list(values["changes"]), bool(values["moved"])

    def _publish(self, update: int) -> None:
        is_first = self.link.sent is None
        differs = self.link.publish(update)
        if self._moved if is_first else differs:
            self._changes.append(update)
        self._moved = False
        if is_first and self._under_way:
            self._give([group for group in self._under_way if group.missing])

    def _give_out(self, updates_left: int) -> None:
        """New prompts, as many as may be under way; at the end of the run none that no update would train on."""
        most = min(self.rule.capacity, updates_left * self.rule.groups)
        new: list[GroupAhead] = []
        while len(self._under_way) + len(new) < most:
            if not self._reserve:
                self._draw()
            new.append(self._reserve.popleft())
        self._under_way += new
        self._give(new)

    def _give(self, groups: Sequence[GroupAhead]) -> None:
        asked = [select_prompts(group.prompts, group.missing) for group in groups]
        if asked:
            whole = asked[0]
            for prompts in asked[1:]:
                whole = join_prompts(whole, prompts)
            self.link.give(whole)

    def _draw(self) -> None:
        prompts, each = next(self._source), self.num_generations
        for first in range(0, len(prompts), each):
            rows = select_prompts(prompts, range(first, first + each))
            (in_data,) = self.draws.numbers(rows.episodes[:1])
            self._reserve.append(GroupAhead(rows.episodes[0] // each, rows, in_data))
        self._drawn += self.rule.groups

    def _wait_for(self, update: int) -> BatchAhead:
        passed_over: set[int] = set()
        self._hear(None)
        with waiting("the generation process (max_staleness)", self._to_come) as wait:
            while (choice := choose(self._states(update), self.rule, update)).batch is None:
                missing = {group.number for group in self._under_way if group.missing}
                if len(self._under_way) - len(missing) >= self.rule.groups:
                    passed_over |= missing
                self._hear(wait)
        numbers, too_old = set(choice.batch), set(choice.too_old)
        groups = tuple(group for group in self._under_way if group.number in numbers)
        left = [group for group in self._under_way if group.number in too_old]
        unwanted = [group.prompts.episodes[place] for group in left for place in group.missing]
        if unwanted:
            self.link.abandon(unwanted)
        self._under_way = [group for group in self._under_way if group.number not in numbers | too_old]
        dropped = sum(len(group.prompts) for group in left)
        return BatchAhead(update, groups, dropped, len(passed_over & numbers), self._idle_share())

    def _states(self, update: int) -> list[GroupUnderWay]:
        return [
            GroupUnderWay(
                group.number,
                not group.missing,
                None if group.begun is None else newest_alike(group.begun, self._changes, update),
            )
            for group in self._under_way
        ]

    def _hear(self, wait: Any) -> None:
        """Take in what the process says. A row that nobody waits for any more is left."""
        if not self.link.runs:
            return
        by_episode = {episode: group for group in self._under_way for episode in group.prompts.episodes}
        for message in self.link.hear(wait):
            if isinstance(message, Worked):
                self._worked.append(message)
            elif isinstance(message, RowsBegun):
                for episode in message.episodes:
                    if episode in by_episode:
                        by_episode[episode].take_up(message.version)
            elif message.episode in by_episode:
                by_episode[message.episode].rows[message.episode] = message

    def _to_come(self) -> str:
        numbers = [group.number for group in self._under_way if group.missing]
        return f"{len(numbers)} prompts are to be answered: {listed(numbers)}; {self.link.state}"

    def _idle_share(self) -> float | None:
        idle, busy = (sum(vars(worked)[name] for worked in self._worked) for name in ("idle", "busy"))
        self._worked.clear()
        return idle / (idle + busy) if idle + busy > 0 else None
