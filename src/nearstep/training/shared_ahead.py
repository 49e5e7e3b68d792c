"""Rollouts that are sampled ahead for several processes: the first has the generation process, and deals its rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nearstep.metrics import Metrics
from nearstep.rollout.engine import GenerationSettings
from nearstep.scale.backend import Backend
from nearstep.training.ahead import PromptDraws, RolloutStream
from nearstep.training.clock import Clock
from nearstep.training.finished_ahead import BatchAhead
from nearstep.training.joining import select_prompts
from nearstep.types import Prompts, Rollout


@dataclass
class SharedStream:
    """The stream of each process. All of them take a batch together; each trains on its own rows of it.

    Which prompts make up a batch, and what a checkpoint holds of those under way, is the first process's to say.
    """

    stream: RolloutStream | None  # of all rows; the first process has it
    draws: PromptDraws  # of this process
    rows: range  # this process's of a batch
    backend: Backend
    clock: Clock
    device: torch.device
    _batch: BatchAhead | None = None  # that was yielded last, of all processes

    def batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[Prompts]:
        """See RolloutStream.batches; this process's rows."""
        whole = None if self.stream is None else self.stream.whole_batches(after=after, until=until, played=played)
        for _ in range(after, until):
            taken = None if whole is None else next(whole)
            with self.clock("generate"):
                self._batch = self.backend.gather(taken)[0]
            assert self._batch is not None, "the first process has taken one"
            yield select_prompts(self._batch.prompts, self.rows)
        self.close()

    def more(self, places: Sequence[int]) -> Prompts:
        """See RolloutStream.more."""
        raise AssertionError(f"{len(places)} prompts were asked for beside those that were sampled ahead")

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """See RolloutStream.numbers."""
        assert self._batch is not None, "a batch comes before its numbers"
        return self._batch.numbers(episodes)

    def again(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """See PromptBatches.again."""
        return self.draws.again(numbers, episodes)

    def seen(self, means: Sequence[float]) -> None:
        """Samplers that learn from scores are refused before the run."""

    def rollout(self, prompts: Prompts, settings: GenerationSettings) -> Rollout:
        """The answers to this process's rows of the batch that was yielded last, checked as any engine's."""
        assert self._batch is not None, "a batch comes before its answers"
        return self._batch.rollout(prompts, settings, self.device)

    @property
    def dropped(self) -> int:
        """See RolloutStream.dropped; of all processes, the same on each."""
        return 0 if self._batch is None else self._batch.dropped

    def metrics(self, rollout: Rollout) -> Metrics:
        """See RolloutStream.metrics; of this process's rows."""
        assert self._batch is not None, "a batch comes before its metrics"
        return self._batch.metrics(rollout)

    def memory(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """See RolloutStream.memory; what the first process writes, and nothing on others."""
        return None if self.stream is None else self.stream.memory()

    def recall(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """See RolloutStream.recall. As many processes as wish may go on: what was under way is of all of them."""
        if self.stream is not None:
            self.stream.recall(values, tensors)

    def close(self) -> None:
        """End the generation process, where it is this process's."""
        if self.stream is not None:
            self.stream.close()


SampledAhead: TypeAlias = RolloutStream | SharedStream
