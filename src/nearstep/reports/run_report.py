"""What the loop tells after each update: metrics of all processes, every episode, samples now and then."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from nearstep.evaluation.evaluator import Evaluation, Evaluator
from nearstep.reports.metrics import numbers
from nearstep.reports.records import rollout_records
from nearstep.reports.reporter import Reporter
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.clock import Clock
from nearstep.training.optimizers import Learners
from nearstep.training.state import State
from nearstep.types import Experience, Metrics, Prompts, Scores

RECENT_UPDATES = 20


@dataclass(frozen=True)
class Wishes:
    """What is due after an update, by the settings or because a callback of any process asked."""

    evaluate: bool
    save: bool
    stop: bool


@dataclass
class Report:
    """Between the loop and the reporter: adds up over processes, adds the run's own numbers."""

    reporter: Reporter
    backend: Backend
    batch: BatchSizes
    learners: Learners
    clock: Clock
    evaluator: Evaluator
    sample_updates: frozenset[int]
    log_rollouts: bool
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_UPDATES))

    def begin_update(self) -> None:
        """Tell callbacks that an update begins."""
        self.reporter.step_begin()

    def step(self, state: State, prompts: Prompts, experience: Experience, scores: Scores, metrics: Metrics) -> Wishes:
        """Report an update that is done and move the learning rates on; returns what is due now."""
        records = (
            []
            if not self.log_rollouts
            else rollout_records(
                update=state.update,
                prompts=prompts,
                decode=self.evaluator.decode,
                rollout=experience.rollout,
                scores=scores,
                final_scores=torch.where(
                    scores.scored, scores.with_dense(experience.scores, experience.rollout), torch.nan
                ),
            )
        )
        tokens, metrics = len(experience.rollout.tokens), metrics.cpu()
        gathered = self.backend.gather((records, tokens, metrics, scores.metrics))
        merged = sum((of_process for _, _, of_process, _ in gathered), start=Metrics())
        seconds, shares = self.clock.lap()
        self.recent_seconds.append(seconds)
        shown = numbers(merged) | {
            **_mean_by_name([logged for *_, logged in gathered]),
            "eps": len(self.recent_seconds) * self.batch.batch / sum(self.recent_seconds),
            "tokens_per_second": sum(count for _, count, _, _ in gathered) / seconds,
            "seconds": seconds,
            **{f"time/{phase}": share for phase, share in shares.items()},
            "lr": self.learners.policy.learning_rate,
            "optimizer/steps": state.steps.policy,
            **self._of_critic(state),
        }
        self.learners.end_update()
        self.reporter.step(
            update=state.update,
            episode=state.episodes,
            epoch=state.epoch,
            records=[record for of_process, *_ in gathered for record in of_process],
            numbers=shown,
        )
        if state.update in self.sample_updates:
            self.reporter.samples(state.update, self.evaluator.samples())
        return self._wishes()

    def evaluation(self, state: State, result: Evaluation) -> None:
        """Report an evaluation."""
        shown = numbers(result.metrics)
        self.reporter.evaluation(update=state.update, episode=state.episodes, epoch=state.epoch, numbers=shown)

    def _of_critic(self, state: State) -> dict[str, float]:
        if self.learners.critic is None:
            return {}
        return {"vf_lr": self.learners.critic.learning_rate, "value/optimizer_steps": state.steps.critic}

    def _wishes(self) -> Wishes:
        """The same on every process, or some would wait for others for ever."""
        own = (self.reporter.should_evaluate, self.reporter.should_save, self.reporter.should_training_stop)
        evaluate, save, stop = (any(each) for each in zip(*self.backend.gather(own), strict=True))
        # A run that is stopped early ends with an evaluation too.
        return Wishes((evaluate or stop) and self.evaluator.has_prompts, save, stop)


def _mean_by_name(logged: Sequence[dict[str, float]]) -> dict[str, float]:
    """Numbers that reward functions logged, averaged over the processes that logged them."""
    by_name: dict[str, list[float]] = {}
    for of_process in logged:
        for name, number in of_process.items():
            by_name.setdefault(name, []).append(number)
    return {name: sum(values) / len(values) for name, values in by_name.items()}
