"""How texts that rewards score become training examples: a score for each to be learnt, or the better of every two."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TypeAlias

from nearstep.common.errors import DataError
from nearstep.config.reward_model import RewardConfig
from nearstep.data.row_errors import BadValueError
from nearstep.data.tokenise import keywords_of
from nearstep.reward_modeling.encoding import LeftOutRows, TextEncoder
from nearstep.reward_modeling.examples import Comparison, Grade, PreferenceLabel
from nearstep.rewards.batch import Completion, RewardBatch
from nearstep.scale.backend import Backend
from nearstep.types import PromptInput

ScoreTexts: TypeAlias = Callable[[RewardBatch], list[float]]
Split: TypeAlias = tuple[list[int], list[int]]  # ids of a prompt, ids of the answer to it

SCORED_AT_A_TIME = 256


@dataclass(frozen=True)
class TextAnswer:
    """A text, or the assistant's messages, to be scored; `finished` is false where it was cut off.

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


EncodedAnswer: TypeAlias = tuple[int, TextAnswer, Split]  # number of its prompt, answer, ids


@dataclass(frozen=True)
class PromptWithAnswers:
    """A prompt, the answers to it, and what else its row holds for reward functions."""

    prompt: PromptInput
    answers: list[TextAnswer]
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
class TextsToScore:
    """Prompts with their answers, and notes on how they were made."""

    prompts_to_score: list[PromptWithAnswers]
    label: str
    sentences: list[str]


def score(
    texts: TextsToScore, score_texts: ScoreTexts, encoder: TextEncoder, config: RewardConfig, backend: Backend
) -> tuple[list[Scored], list[str]]:
    """Encode and score all answers; a sentence for each kind of those left out.

    Raises DataError for an answer that cannot be read and RewardError as the rewards do. A score that is NaN leaves
    its answer out, as on_reward_error = drop wants.
    """
    left_out_rows = LeftOutRows(config.on_long_text, config.on_bad_row)
    answers = _encoded(texts.prompts_to_score, encoder, left_out_rows)
    notes = left_out_rows.settle(
        texts.label, sum(len(prompt_row.answers) for prompt_row in texts.prompts_to_score), len(answers)
    )
    scores = _scores_of(texts.prompts_to_score, answers, score_texts, backend)
    found: dict[int, Scored] = {}
    for (number, _, (before, after)), total in zip(answers, scores, strict=True):
        if not math.isnan(total):
            scored = found.setdefault(number, Scored([], [], texts.prompts_to_score[number].key))
            scored.rows.append(before + after)
            scored.scores.append(total)
    failed = sum(map(math.isnan, scores))
    if failed == len(scores):
        raise DataError(f"{texts.label}: no text got a score.")
    return list(found.values()), [*notes, *([f"{failed} of {len(scores)} texts got no score."] if failed else [])]


def _encoded(
    prompts_to_score: Sequence[PromptWithAnswers], encoder: TextEncoder, left_out_rows: LeftOutRows
) -> list[EncodedAnswer]:
    """The number of its prompt, the answer and its ids, for every answer that can be read."""
    usable = []
    for number, prompt_row in enumerate(prompts_to_score):
        for answer in prompt_row.answers:
            try:
                usable.append((number, answer, _encode(prompt_row, answer, encoder)))
            except BadValueError as error:
                left_out_rows.add(error, prompt_row.place)
    return usable


def _scores_of(
    prompts_to_score: Sequence[PromptWithAnswers],
    answers: Sequence[EncodedAnswer],
    score_texts: ScoreTexts,
    backend: Backend,
) -> list[float]:
    """The score of every answer; batches go round the processes, and all get all scores."""
    starts = range(0, len(answers), SCORED_AT_A_TIME)
    own = {
        start: score_texts(_batch(prompts_to_score, answers[start : start + SCORED_AT_A_TIME], start))
        for start in starts[backend.rank :: backend.world_size]
    }
    merged = {start: scores for part in backend.gather(own) for start, scores in part.items()}
    return [total for start in starts for total in merged[start]]


def _encode(prompt_row: PromptWithAnswers, answer: TextAnswer, encoder: TextEncoder) -> Split:
    """The ids of prompt and answer; raises BadValueError."""
    if answer.ids is not None:
        encoder.check([*answer.ids[0], *answer.ids[1]], answer.content, "completion")
        return answer.ids
    encoder = encoder.of_row(keywords_of(prompt_row.columns))
    ids = encoder.encode(prompt_row.prompt, answer.content, "completion", finished=answer.finished)
    return encoder.reader.split(prompt_row.prompt, ids)


def _batch(prompts_to_score: Sequence[PromptWithAnswers], answers: Sequence[EncodedAnswer], first: int) -> RewardBatch:
    """Answers as rewards are given them in PPO."""
    texts = [prompts_to_score[number] for number, _, _ in answers]
    return RewardBatch(
        prompts=[prompt_row.prompt for prompt_row in texts],
        completions=[
            answer.beside(prompt_row.prompt) for prompt_row, (_, answer, _) in zip(texts, answers, strict=True)
        ],
        prompt_ids=[before for _, _, (before, _) in answers],
        completion_ids=[after for _, _, (_, after) in answers],
        finished=[answer.finished for _, answer, _ in answers],
        columns={name: [prompt_row.columns[name] for prompt_row in texts] for name in texts[0].columns},
        episodes=list(range(first, first + len(answers))),
    )


def grades_of(scored: Sequence[Scored]) -> tuple[list[Grade], list[str]]:
    """Every text with its score, and the key of its prompt."""
    grades = [Grade(row, total) for each in scored for row, total in zip(each.rows, each.scores, strict=True)]
    return grades, [each.key for each in scored for _ in each.rows]


def comparisons_of(scored: Sequence[Scored], min_score_gap: float) -> tuple[list[Comparison], list[str]]:
    """One comparison for every prompt with two answers that differ by more than `min_score_gap`; and the keys."""
    found = [(comparison_of(each, min_score_gap), each.key) for each in scored]
    kept = [(comparison, key) for comparison, key in found if comparison.labels]
    return [comparison for comparison, _ in kept], [key for _, key in kept]


def comparison_of(scored: Scored, min_score_gap: float) -> Comparison:
    """The answers to one prompt, equal ones once, and the better of every two."""
    distinct = {tuple(row): total for row, total in zip(scored.rows, scored.scores, strict=True)}
    scores = list(distinct.values())
    labels = [
        PreferenceLabel(first, second, gap) if gap > 0 else PreferenceLabel(second, first, -gap)
        for first, second in combinations(range(len(scores)), 2)
        if abs(gap := scores[first] - scores[second]) > min_score_gap
    ]
    return Comparison(tuple(list(row) for row in distinct), tuple(labels))
