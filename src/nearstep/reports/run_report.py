"""What the loop tells after each update: metrics of all processes, every episode, samples now and then."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeAlias

import torch

from nearstep.common.waiting import WATCHDOG
from nearstep.metrics import Metrics
from nearstep.reports.records import Record, rollout_records
from nearstep.reports.reporter import Reporter
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.clock import Clock
from nearstep.training.interruption import Interruption
from nearstep.training.optimizers import LearningRates
from nearstep.training.recipe import Due
from nearstep.training.state import State
from nearstep.types import Experience, Prompts, Scores

RECENT_UPDATES = 20

ReportMemory: TypeAlias = Mapping[str, Any]


@dataclass
class Report:
    """Between the loop and the reporter: adds up over processes, adds the run's own numbers."""

    reporter: Reporter
    backend: Backend
    batch: BatchSizes
    clock: Clock
    decode: Callable[[list[int]], str]  # of a prompt, special tokens visible
    judged: Callable[[list[int], bool], str]  # of a response and whether it ended itself: the text that rewards had
    sample_updates: frozenset[int]
    has_eval: bool
    log_rollouts: bool
    interruption: Interruption
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_UPDATES))

    def __enter__(self) -> "Report":
        self.reporter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.reporter.__exit__(kind, error, traceback)

    @property
    def history(self) -> Sequence[Mapping[str, int | float]]:
        """The metrics of every update and evaluation that was logged."""
        return self.reporter.history

    def begin(self, introduction: str, state: State) -> None:
        """Show the batch arithmetic and what the user should read first; open files and trackers."""
        self.clock.lap()  # what was before the run, or between two parts of it, is no update's time
        self.reporter.begin(self.batch.table(), introduction, after=state.update)

    def memory(self) -> ReportMemory:
        """What a resumed run must know again: the callbacks' state, best evaluation among it, and recent speed."""
        return {"callbacks": self.reporter.callbacks_state(), "recent_seconds": list(self.recent_seconds)}

    def recall(self, memory: ReportMemory) -> None:
        """Know again what `memory` gave."""
        self.reporter.restore_callbacks(memory["callbacks"])
        self.recent_seconds.extend(memory["recent_seconds"])

    def begin_update(self) -> None:
        """Tell callbacks that an update begins."""
        self.reporter.step_begin()

    def step(
        self,
        state: State,
        prompts: Prompts,
        experience: Experience,
        scores: Scores,
        metrics: Metrics,
        rates: LearningRates,
    ) -> Due:
        """Report an update that is done; returns what is due now."""
        records = self._records(state, prompts, experience, scores) if self.log_rollouts else []
        all_records = self.backend.gather_to_main(records)
        tokens, metrics = len(experience.rollout.tokens), metrics.cpu()
        gathered = self.backend.gather((tokens, metrics, scores.metrics))
        seconds, shares = self.clock.lap()
        self.recent_seconds.append(seconds)
        shown = sum((of_process for _, of_process, _ in gathered), start=Metrics()).numbers() | {
            **sum((logged for *_, logged in gathered), start=Metrics()).numbers(),
            "eps": len(self.recent_seconds) * self.batch.batch / sum(self.recent_seconds),
            "tokens_per_second": sum(count for count, *_ in gathered) / seconds,
            "seconds": seconds,
            **{f"time/{phase}": share for phase, share in shares.items()},
            "lr": rates.policy,
            "optimizer/steps": state.steps.policy,
            "optimizer/skipped_steps": state.steps.skipped,
            **({} if rates.critic is None else {"vf_lr": rates.critic, "value/optimizer_steps": state.steps.critic}),
        }
        self.reporter.step(
            update=state.update,
            episode=state.episodes,
            epoch=state.epoch,
            records=[record for of_process in all_records for record in of_process],
            numbers=shown,
        )
        due = self._due(state)
        if due.samples or due.evaluate:
            WATCHDOG.phase = "evaluate"
            self.reporter.phase("evaluate")
        return due

    def samples(self, state: State, rows: Sequence[tuple[str, str, float]]) -> None:
        """Show and record what the policy answers now to a few prompts."""
        self.reporter.samples(state.update, rows)

    def evaluation(self, state: State, metrics: Metrics) -> bool:
        """Report an evaluation; returns whether it is the best so far."""
        shown = metrics.numbers()
        return self.reporter.evaluation(update=state.update, episode=state.episodes, epoch=state.epoch, numbers=shown)

    def end(self) -> None:
        """Close files and trackers, say how it went."""
        self.reporter.end()

    def _records(self, state: State, prompts: Prompts, experience: Experience, scores: Scores) -> list[Record]:
        finals = torch.where(scores.scored, scores.with_dense(experience.scores, experience.rollout), torch.nan)
        return rollout_records(
            update=state.update,
            prompts=prompts,
            decode=self.decode,
            judged=self.judged,
            rollout=experience.rollout,
            scores=scores,
            final_scores=finals,
        )

    def _due(self, state: State) -> Due:
        """The same on every process, or some would wait for others for ever."""
        own = (
            self.reporter.should_evaluate,
            self.reporter.should_save,
            self.reporter.should_training_stop,
            self.interruption.asked,
        )
        evaluate, save, stop, leave = (any(each) for each in zip(*self.backend.gather(own), strict=True))
        return Due(
            samples=state.update in self.sample_updates,
            # A run that is stopped early ends with an evaluation too, unless it is a signal that stops it: it goes on.
            evaluate=(evaluate or stop) and self.has_eval,
            save=save or leave,
            stop=stop or leave,
        )
