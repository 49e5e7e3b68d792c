"""How good the policy is on held-out prompts, and what it writes: an episode without an update.

The engine, the rewards and the way of scoring are training's. What the policy answers before its first update is kept,
so that every later evaluation says how often it does better than it did then.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.kl import KLEstimator, kl_estimate
from nearstep.evaluation.eval_answers import (
    EvaluatedRow,
    Opponents,
    ScoredAnswer,
    plain_numbers,
    reference_answers,
    reference_column,
    row_parts,
    row_sums,
    row_totals,
)
from nearstep.evaluation.row_numbers import evaluation_numbers
from nearstep.models.roles import Policy, Reference
from nearstep.rewards.combine import Rewards
from nearstep.rewards.decoding import completion_text
from nearstep.rollout.engine import GenerationSettings, RolloutEngine, load, play
from nearstep.scale.backend import Backend
from nearstep.training.evaluated import Evaluation, Sample
from nearstep.training.frozen_passes import PassLimits, logprobs_under
from nearstep.training.state import State
from nearstep.types import Prompts, Rollout, Scores

SAMPLE_ROWS = 4


@dataclass(frozen=True)
class EvaluationSet:
    """This process's share of the prompts of one evaluation; `name` is empty for the only one."""

    name: str
    chunks: Sequence[Prompts]


@dataclass(frozen=True)
class StartAnswers:
    """What evaluations are compared with: by set, for every response in order; and the start's sample responses."""

    sets: Mapping[str, Sequence[Opponents]] = field(default_factory=dict)
    samples: Sequence[ScoredAnswer] = ()


@dataclass
class Evaluator:
    """Plays every evaluation prompt, in a way that two evaluations differ by weights alone.

    It plays on the engine of the training run, as `generation` says, and the prompts of the sample table (the same on
    every process) as `sample_generation` does. The KL is measured to `reference`, on the responses that were played.
    """

    policy: Policy
    reference: Reference | None
    generation: GenerationSettings
    sample_generation: GenerationSettings
    rewards: Rewards
    judge: Rewards | None  # rewards that training does not see
    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    sets: Sequence[EvaluationSet]
    sample_prompts: Prompts
    shows_samples: bool  # whether the run shows any
    limits: PassLimits
    kl_estimator: KLEstimator = "k1"
    num_generations: int = 1
    reference_column: str | None = None
    start: StartAnswers | None = None  # what the policy answered before its first update; None while it is not known
    identity: str | None = None  # of everything that the start's answers depend on

    @property
    def has_prompts(self) -> bool:
        """Whether there is anything to evaluate on."""
        return len(self.sets) > 0

    def decode(self, ids: list[int]) -> str:
        """Text of token ids with special tokens visible."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False)
        return text

    def judged(self, ids: list[int], finished: bool) -> str:
        """A response as rewards are given it."""
        return completion_text(ids, finished, self.tokenizer)

    def begin(self, engine: RolloutEngine, state: State) -> Evaluation | None:
        """Before the first update: let the policy answer every prompt, and score the data's own answers.

        Returns what the evaluation found; None where the start's answers are known already.
        """
        if self.start is not None or not (self.has_prompts or self.shows_samples):
            return None
        with self._weights():
            return self._begin(engine, state)

    def _begin(self, engine: RolloutEngine, state: State) -> Evaluation:
        self._load(engine, state)
        played = {each.name: self._rows(engine, each, compare=True) for each in self.sets}
        sets = {name: [Opponents(row.answer, answer) for row, answer in rows] for name, rows in played.items()}
        samples = [ScoredAnswer(text, score) for _, text, score in self._samples(engine)] if self.shows_samples else []
        self.start, self.identity = StartAnswers(sets, samples), self._identity()
        return self._evaluation({name: [row for row, _ in rows] for name, rows in played.items()}, state)

    def evaluate(self, engine: RolloutEngine, state: State) -> Evaluation:
        """Every prompt played with the weights as they are, by all processes, none left out."""
        with self._weights():
            self._load(engine, state)
            played = {each.name: [row for row, _ in self._rows(engine, each)] for each in self.sets}
        return self._evaluation(played, state)

    def samples(self, engine: RolloutEngine, state: State) -> list[Sample]:
        """What the policy answers now to a few prompts, and what it answered before its first update."""
        with self._weights():
            self._load(engine, state)
            now, then = self._samples(engine), self.start.samples if self.start is not None else ()
        return [
            Sample(
                query,
                response,
                math.nan if score is None else score,
                None if before is None else before.text,
                None if before is None else before.score,
            )
            for (query, response, score), before in zip_longest(now, then)
        ]

    def memory(self) -> dict[str, Any]:
        """What a resumed run must know again."""
        if self.start is None:
            return {}
        return {
            "of": self.identity,
            "sets": {name: [each.plain() for each in answers] for name, answers in self.start.sets.items()},
            "samples": [asdict(answer) for answer in self.start.samples],
        }

    def recall(self, memory: Mapping[str, Any], engine: RolloutEngine) -> None:
        """Know again what `memory` gave; comes before the weights of a checkpoint are put in place of the start's.

        Where it is of other prompts, another way to play or other rewards, the start answers anew.
        """
        identity = self._identity()
        if memory.get("of") == identity:
            self.identity = identity
            sets = {name: [Opponents.from_plain(each) for each in answers] for name, answers in memory["sets"].items()}
            self.start = StartAnswers(sets, [ScoredAnswer(**each) for each in memory["samples"]])
        elif self.start is None:
            self.begin(engine, State())

    def close(self) -> None:
        """End what the judge keeps running."""
        if self.judge is not None:
            self.judge.close()

    def _identity(self) -> str:
        """A hash of everything that the start's answers depend on, beside its weights; the same on all processes."""
        prompts = [(each.name, prompts.ids, prompts.episodes) for each in self.sets for prompts in each.chunks]
        whole = self.backend.gather(prompts)
        how = (self.generation, self.sample_generation, self.reference_column, self.sample_prompts.ids)
        names = (self.rewards.names, [] if self.judge is None else self.judge.names)
        rows = sorted(
            (name, *row) for each in whole for name, ids, number in each for row in zip(number, ids, strict=True)
        )
        return hashlib.sha256(repr((rows, how, names)).encode()).hexdigest()

    def _evaluation(self, played: Mapping[str, Sequence[EvaluatedRow]], state: State) -> Evaluation:
        numbers: dict[str, int | float] = {}
        records: list[dict[str, object]] = []
        for name, rows in played.items():
            nothing = [Opponents(None, None)] * len(rows)
            others = nothing if self.start is None else self.start.sets.get(name, nothing)
            prefix = f"{name}/" if name else ""
            numbers |= {f"{prefix}{metric}": number for metric, number in evaluation_numbers(rows, others).items()}
            records += [_record(state.update, name, row, other) for row, other in zip(rows, others, strict=True)]
        return Evaluation(numbers, records)

    def _weights(self) -> AbstractContextManager[None]:
        """While policy and reference compute."""
        return self.backend.gathered(self.policy.model, None if self.reference is None else self.reference.policy.model)

    def _load(self, engine: RolloutEngine, state: State) -> None:
        """The weights after an update are those that the next one will use, and have its number."""
        load(engine, self.policy, state.update + 1)

    def _play(self, engine: RolloutEngine, prompts: Prompts, settings: GenerationSettings) -> tuple[Rollout, Scores]:
        with self.rewards.early(prompts) as early:
            rollout = play(engine, prompts, settings, early).last_segments()
        return rollout, self.rewards(prompts, rollout, early)

    def _samples(self, engine: RolloutEngine) -> list[tuple[str, str, float | None]]:
        rollout, scores = self._play(engine, self.sample_prompts, self.sample_generation)
        rows = zip(
            rollout.prompt_ids(), rollout.completion_ids(), rollout.finished.tolist(), row_totals(scores, rollout),
            strict=True,
        )  # fmt: skip
        return [(self.decode(query), self.judged(ids, ended), score) for query, ids, ended, score in rows]

    def _rows(
        self, engine: RolloutEngine, prompts: EvaluationSet, *, compare: bool = False
    ) -> list[tuple[EvaluatedRow, ScoredAnswer | None]]:
        """The rows of all processes in order, each with the data's own answer where they are to be compared."""
        own = [found for chunk in prompts.chunks if len(chunk) for found in self._chunk(engine, chunk, compare=compare)]
        return sorted(
            (found for of_process in self.backend.gather(own) for found in of_process),
            key=lambda found: (found[0].row, found[0].sample),
        )

    def _chunk(
        self, engine: RolloutEngine, prompts: Prompts, *, compare: bool
    ) -> list[tuple[EvaluatedRow, ScoredAnswer | None]]:
        rollout, scores = self._play(engine, prompts, self.generation)
        judged = None if self.judge is None else self.judge(prompts, rollout)
        totals, kl = row_totals(scores, rollout), self._kl(rollout)
        judge_totals = [None] * len(rollout) if judged is None else row_totals(judged, rollout)
        judge_parts = [{}] * len(rollout) if judged is None else row_parts(judged)
        column = reference_column(list(prompts.columns), self.reference_column) if compare else None
        others = reference_answers(prompts, column, self.rewards, self.judge, self.tokenizer)
        lengths, finished, parts = rollout.action_counts.tolist(), rollout.finished.tolist(), row_parts(scores)
        return [
            (
                EvaluatedRow(
                    *divmod(prompts.episodes[row], self.num_generations),
                    prompt=self.decode(prompts.ids[row]),
                    answer=ScoredAnswer(self.judged(ids, finished[row]), totals[row], judge_totals[row]),
                    length=lengths[row],
                    finished=finished[row],
                    kl=kl[row],
                    parts=parts[row],
                    judge_parts=judge_parts[row],
                ),
                others[row],
            )
            for row, ids in enumerate(rollout.completion_ids())
        ]

    @torch.no_grad()
    def _kl(self, rollout: Rollout) -> list[float | None]:
        """Σ kl of each response, by the estimator of the run; None without a reference."""
        if self.reference is None:
            return [None] * len(rollout)
        sampling = self.generation.sampling
        ours = logprobs_under(self.policy, rollout, sampling, self.limits)
        with self.reference.active() as reference:
            theirs = logprobs_under(reference, rollout, sampling, self.limits)
        sums = row_sums(kl_estimate(ours, theirs, self.kl_estimator), rollout.action_counts)
        return plain_numbers(torch.tensor(sums, dtype=torch.float64))


def _record(update: int, name: str, row: EvaluatedRow, other: Opponents) -> dict[str, object]:
    """The line of eval_rollouts.jsonl."""
    return {
        "update": update,
        **({"dataset": name} if name else {}),
        "row": row.row,
        "sample": row.sample,
        "prompt": row.prompt,
        "completion": row.answer.text,
        "score": row.answer.score,
        "judge": row.answer.judge,
        "start_score": None if other.start is None else other.start.score,
        "start_completion": None if other.start is None else other.start.text,
        "reference": None if other.reference is None else other.reference.text,
        "reference_score": None if other.reference is None else other.reference.score,
        "kl": row.kl,
        "response_length": row.length,
        "finished": row.finished,
        "scores": dict(row.parts),
    }
