"""How texts that rewards judge become lessons: a score for each to be learnt, or the better of every two."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeAlias

from nearstep.config_reward_modeling import RewardConfig
from nearstep.data.faults import BadValueError
from nearstep.errors import DataError
from nearstep.reward_modeling.encoding import Leavings, TextEncoder
from nearstep.reward_modeling.examples import Comparison, Grade, Verdict
from nearstep.rewards.batch import Completion, RewardBatch
from nearstep.scale.backend import Backend
from nearstep.types import PromptInput

Judge: TypeAlias = Callable[[RewardBatch], list[float]]
Split: TypeAlias = tuple[list[int], list[int]]  # ids of a prompt, ids of the answer to it

JUDGED_AT_A_TIME = 256


@dataclass(frozen=True)
class Answer:
    """A text, or the assistant's messages, that shall be judged; `finished` is false where it was cut off.

    `ids` are those of prompt and answer where the model itself wrote it: text need not give them back.
    """

    content: Completion
    finished: bool = True
    ids: Split | None = None

    def beside(self, prompt: PromptInput) -> Completion:
        """As rewards get it: messages where the prompt is a conversation."""
        if isinstance(prompt, str) or not isinstance(self.content, str):
            return self.content
        return [{"role": "assistant", "content": self.content}]


Encoded: TypeAlias = tuple[int, Answer, Split]  # number of its question, answer, ids


@dataclass(frozen=True)
class Question:
    """A prompt, the answers to it, and what else its row holds for reward functions."""

    prompt: PromptInput
    answers: list[Answer]
    place: str
    columns: Mapping[str, object] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells prompts apart; a text without a prompt is its own."""
        return repr(self.prompt or self.answers)


@dataclass(frozen=True)
class Scored:
    """The usable answers to one prompt as rows of ids, each with its score."""

    rows: list[list[int]]
    scores: list[float]
    key: str


@dataclass(frozen=True)
class Asked:
    """Questions with their answers, and what was done to get them."""

    questions: list[Question]
    label: str
    sentences: list[str]


def score(
    asked: Asked, judge: Judge, encoder: TextEncoder, config: RewardConfig, backend: Backend
) -> tuple[list[Scored], list[str]]:
    """Encode and judge all answers; a sentence for each kind of those left out.

    Raises DataError for an answer that cannot be read and RewardError as the judge does. A score that is NaN leaves
    its answer out, as on_reward_error = drop wants.
    """
    leavings = Leavings(config.on_long_text, config.on_bad_row)
    answers = _encoded(asked.questions, encoder, leavings)
    said = leavings.settle(asked.label, sum(len(question.answers) for question in asked.questions), len(answers))
    scores = _judged(asked.questions, answers, judge, backend)
    found: dict[int, Scored] = {}
    for (number, _, (before, after)), total in zip(answers, scores, strict=True):
        if not math.isnan(total):
            scored = found.setdefault(number, Scored([], [], asked.questions[number].key))
            scored.rows.append(before + after)
            scored.scores.append(total)
    failed = sum(map(math.isnan, scores))
    if failed == len(scores):
        raise DataError(f"{asked.label}: no text got a score.")
    return list(found.values()), [*said, *([f"{failed} of {len(scores)} texts got no score."] if failed else [])]


def _encoded(questions: Sequence[Question], encoder: TextEncoder, leavings: Leavings) -> list[Encoded]:
    """The number of its question, the answer and its ids, for every answer that can be read."""
    usable = []
    for number, question in enumerate(questions):
        for answer in question.answers:
            try:
                usable.append((number, answer, _encode(question, answer, encoder)))
            except BadValueError as error:
                leavings.add(error, question.place)
    return usable


def _judged(questions: Sequence[Question], answers: Sequence[Encoded], judge: Judge, backend: Backend) -> list[float]:
    """The score of every answer; batches go round the processes, and all get all scores."""
    starts = range(0, len(answers), JUDGED_AT_A_TIME)
    own = {
        start: judge(_batch(questions, answers[start : start + JUDGED_AT_A_TIME], start))
        for start in starts[backend.rank :: backend.world_size]
    }
    merged = {start: scores for part in backend.gather(own) for start, scores in part.items()}
    return [total for start in starts for total in merged[start]]


def _encode(question: Question, answer: Answer, encoder: TextEncoder) -> Split:
    """The ids of prompt and answer; raises BadValueError."""
    if answer.ids is not None:
        encoder.check([*answer.ids[0], *answer.ids[1]], answer.content, "completion")
        return answer.ids
    ids = encoder.encode(question.prompt, answer.content, "completion", finished=answer.finished)
    return encoder.reader.split(question.prompt, ids)


def _batch(questions: Sequence[Question], answers: Sequence[Encoded], first: int) -> RewardBatch:
    """Answers as rewards are given them in PPO."""
    asked = [questions[number] for number, _, _ in answers]
    return RewardBatch(
        prompts=[question.prompt for question in asked],
        completions=[answer.beside(question.prompt) for question, (_, answer, _) in zip(asked, answers, strict=True)],
        prompt_ids=[before for _, _, (before, _) in answers],
        completion_ids=[after for _, _, (_, after) in answers],
        finished=[answer.finished for _, answer, _ in answers],
        columns={name: [question.columns[name] for question in asked] for name in asked[0].columns},
        episodes=list(range(first, first + len(answers))),
    )


def grades_of(scored: Sequence[Scored]) -> tuple[list[Grade], list[str]]:
    """Every text with its score, and the key of its prompt."""
    grades = [Grade(row, total) for each in scored for row, total in zip(each.rows, each.scores, strict=True)]
    return grades, [each.key for each in scored for _ in each.rows]


def comparisons_of(scored: Sequence[Scored], min_score_gap: float) -> tuple[list[Comparison], list[str]]:
    """One comparison for every prompt with two answers that differ by more than `min_score_gap`; and the keys."""
    found = [(comparison_of(each, min_score_gap), each.key) for each in scored]
    kept = [(comparison, key) for comparison, key in found if comparison.verdicts]
    return [comparison for comparison, _ in kept], [key for _, key in kept]


def comparison_of(scored: Scored, min_score_gap: float) -> Comparison:
    """The answers to one prompt, equal ones once, and the better of every two."""
    distinct = {tuple(row): total for row, total in zip(scored.rows, scored.scores, strict=True)}
    scores = list(distinct.values())
    verdicts = [
        Verdict(first, second, gap) if gap > 0 else Verdict(second, first, -gap)
        for first, second in combinations(range(len(scores)), 2)
        if abs(gap := scores[first] - scores[second]) > min_score_gap
    ]
    return Comparison(tuple(list(row) for row in distinct), tuple(verdicts))
