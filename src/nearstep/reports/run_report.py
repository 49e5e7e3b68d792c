"""What the loop tells after each update: metrics of all processes, every episode, samples now and then."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nearstep.common.waiting import WATCHDOG
from nearstep.metrics import Metrics
from nearstep.reports.by_row import prompts_by_row, scores_by_row
from nearstep.reports.details import Details, profile_record
from nearstep.reports.dropped import DroppedRecords
from nearstep.reports.records import Record, rollout_records
from nearstep.reports.reporter import Reporter
from nearstep.reports.stop_rules import StopRules
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.clock import Clock
from nearstep.training.evaluated import Evaluation, Sample
from nearstep.training.interruption import Interruption
from nearstep.training.joining import ScoredRows
from nearstep.training.optimizers import LearningRates
from nearstep.training.recipe import Due
from nearstep.training.state import State
from nearstep.types import Experience, Prompts, Scores

RECENT_UPDATES = 20

ReportMemory: TypeAlias = Mapping[str, Any]


def sample_updates(total_updates: int, num_sample_generations: int) -> frozenset[int]:
    """Updates (from 1) that show sample completions: at most as many as asked, evenly spread, the last one in.

    >>> sorted(sample_updates(10, 3))
    [4, 7, 10]
    """
    count = min(total_updates, num_sample_generations)
    return frozenset(-(-total_updates * number // count) for number in range(1, count + 1))


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
    details: Details
    interruption: Interruption
    stop_rules: StopRules
    dropped_records: DroppedRecords
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_UPDATES))

    def __enter__(self) -> "Report":
        self.reporter.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.dropped_records.close()
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
        """What a resumed run must know again: the callbacks' state, best evaluation among it, recent speed, and how
        long the rules for an early end have held."""
        return {
            "callbacks": self.reporter.callbacks_state(),
            "recent_seconds": list(self.recent_seconds),
            "stop_rules": dict(self.stop_rules.in_a_row),
        }

    def recall(self, memory: ReportMemory) -> None:
        """Know again what `memory` gave."""
        self.reporter.restore_callbacks(memory["callbacks"])
        self.recent_seconds.extend(memory["recent_seconds"])
        self.stop_rules.recall(memory.get("stop_rules", {}))

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
        rollout = experience.rollout
        prompts, scores = prompts_by_row(prompts, rollout), scores_by_row(scores, rollout)
        known = scores.scored & rollout.ends_episode
        finals = torch.where(known, scores.with_dense(experience.scores, rollout), torch.nan)
        records = self._records(state, prompts, experience, scores, finals) if self.log_rollouts else []
        # What rewards answered may be of any class: it goes as text, of which nothing is unpickled.
        all_records = map(json.loads, self.backend.gather_to_main(json.dumps(records)))
        if detailed := self.details.due(state.update):
            metrics += self.details.profile(experience, scores)
        token_records = self.details.tokens(state.update, prompts, experience, finals) if detailed else []
        tokens, metrics = len(experience.rollout.tokens), metrics.cpu()
        gathered = self.backend.gather((tokens, metrics, scores.metrics))
        seconds, shares = self.clock.lap()
        self.recent_seconds.append(seconds)
        merged = sum((of_process for _, of_process, _ in gathered), start=Metrics())
        profiled = profile_record(state.update, merged)
        shown = merged.numbers() | {
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
        best = self.reporter.step(
            update=state.update,
            episode=state.episodes,
            epoch=state.epoch,
            records=[record for of_process in all_records for record in of_process],
            numbers=shown,
            tokens=token_records,
            profiles=[] if profiled is None else [profiled],
        )
        why = self.stop_rules.after_update(shown)
        self._tell_of_end(why)
        due = self._due(state, stop=why is not None, best=best)
        if due.samples or due.evaluate:
            WATCHDOG.phase = "evaluate"
            self.reporter.phase("evaluate")
        return due

    def dropped(self, state: State, rows: Sequence[ScoredRows]) -> None:
        """Record episodes of an update that a gate dropped and whose place others have taken, of all processes."""
        if not self.log_rollouts or not any(self.backend.gather(len(rows))):
            return
        records = [record for each in rows for record in self._dropped_records(state, each)]
        gathered = map(json.loads, self.backend.gather_to_main(json.dumps(records)))
        self.dropped_records.write([record for of_process in gathered for record in of_process])

    def samples(self, state: State, rows: Sequence[Sample]) -> None:
        """Show and record what the policy answers now to a few prompts."""
        self.reporter.samples(state.update, rows)

    def evaluation(self, state: State, evaluation: Evaluation, due: Due) -> Due:
        """Report an evaluation; returns what is due now, after the same rules on every process."""
        best = self.reporter.evaluation(
            update=state.update,
            episode=state.episodes,
            epoch=state.epoch,
            numbers=evaluation.numbers,
            rows=evaluation.rows,
        )
        why = self.stop_rules.after_evaluation(evaluation.numbers)
        if why is None and self.reporter.should_training_stop and not due.stop:
            why = "a callback asked for it after the evaluation (early_stopping_patience, or one of your own)"
        self._tell_of_end(why)
        found = self.backend.gather((best, why is not None, self.interruption.asked))
        is_best, stop, leave = (any(each) for each in zip(*found, strict=True))
        return replace(due, best=due.best or is_best, save=due.save or leave, stop=due.stop or stop or leave)

    def _tell_of_end(self, why: str | None) -> None:
        if why is not None:
            self.reporter.note(f"the run ends here: {why}")

    def end(self) -> None:
        """Close files and trackers, say how it went."""
        self.reporter.end()

    def _records(
        self, state: State, prompts: Prompts, experience: Experience, scores: Scores, finals: Tensor
    ) -> list[Record]:
        return rollout_records(
            update=state.update,
            prompts=prompts,
            decode=self.decode,
            judged=self.judged,
            rollout=experience.rollout,
            scores=scores,
            final_scores=finals,
            numbers=self.details.row_numbers(experience),
        )

    def _dropped_records(self, state: State, rows: ScoredRows) -> list[Record]:
        return rollout_records(
            update=state.update,
            prompts=rows.prompts,
            decode=self.decode,
            judged=self.judged,
            rollout=rows.rollout,
            scores=rows.scores,
            final_scores=rows.scores.with_dense(rows.scores.total, rows.rollout),
            numbers=[{}] * len(rows),
        )

    def _due(self, state: State, *, stop: bool, best: bool) -> Due:
        """The same on every process, or some would wait for others for ever."""
        own = (
            self.reporter.should_evaluate,
            self.reporter.should_save,
            self.reporter.should_training_stop or stop,
            self.interruption.asked,
            best,
        )
        evaluate, save, stop, leave, best = (any(each) for each in zip(*self.backend.gather(own), strict=True))
        return Due(
            samples=state.update in self.sample_updates,
            # A run that is stopped early ends with an evaluation too, unless it is a signal that stops it: it goes on.
            evaluate=(evaluate or stop) and self.has_eval,
            save=save or leave,
            stop=stop or leave,
            best=best,
        )
