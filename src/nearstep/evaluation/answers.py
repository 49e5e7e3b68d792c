"""What is kept of every response of an evaluation, and of the answers that it is compared with."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.common.messages import Message
from nearstep.evaluation.episodes import written_rollout
from nearstep.rewards.protocol import RewardModule
from nearstep.types import Prompts, Rollout, Scores

REFERENCE_COLUMNS = ("reference", "completion", "chosen")


@dataclass(frozen=True)
class ScoredAnswer:
    """A text, and what the rewards of the run and the judge of its evaluations gave for it."""

    text: str
    score: float | None  # None where it could not be scored
    judge: float | None = None


@dataclass(frozen=True)
class EvaluatedRow:
    """One response of an evaluation."""

    row: int  # number of its prompt
    sample: int  # number of the response among those to its prompt
    prompt: str
    answer: ScoredAnswer
    length: int
    finished: bool
    kl: float | None
    parts: Mapping[str, float | None]  # of the score; None where one did not apply
    judge_parts: Mapping[str, float | None]


@dataclass(frozen=True)
class Opponents:
    """What a response is compared with: the start's response to the prompt, and the data's own answer."""

    start: ScoredAnswer | None
    reference: ScoredAnswer | None

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> "Opponents":
        """What `plain` gave."""
        found = {name: None if each is None else ScoredAnswer(**each) for name, each in values.items()}
        return Opponents(found["start"], found["reference"])

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def row_totals(scores: Scores, rollout: Rollout) -> list[float | None]:
    """The score of every row; None for one that has none."""
    return plain_numbers(scores.with_dense(scores.total, rollout))


def row_parts(scores: Scores) -> list[dict[str, float | None]]:
    """The parts of every row's score."""
    columns = {name: plain_numbers(part) for name, part in scores.parts.items()}
    return [{name: values[row] for name, values in columns.items()} for row in range(len(scores.total))]


def plain_numbers(values: Tensor) -> list[float | None]:
    """A tensor's numbers; None for those that are none."""
    return [value if math.isfinite(value) else None for value in values.double().tolist()]


def reference_column(columns: Sequence[str], wanted: str | None) -> str | None:
    """The column in which the data's own answers stand, if there is one."""
    names = REFERENCE_COLUMNS if wanted is None else (wanted,)
    return next((name for name in names if name in columns), None)


def reference_answers(
    prompts: Prompts,
    column: str | None,
    rewards: RewardModule,
    judge: RewardModule | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[ScoredAnswer | None]:
    """The data's own answer to each prompt, scored as responses are; None where there is none."""
    texts = [None] * len(prompts) if column is None else [answer_text(each) for each in prompts.columns[column]]
    rows = [row for row, text in enumerate(texts) if text]
    found: list[ScoredAnswer | None] = [None] * len(prompts)
    if not rows:
        return found
    chosen = Prompts(
        ids=[prompts.ids[row] for row in rows],
        inputs=[prompts.inputs[row] for row in rows],
        columns={name: [values[row] for row in rows] for name, values in prompts.columns.items()},
        episodes=[prompts.episodes[row] for row in rows],
    )
    written = [text for text in texts if text]
    rollout = written_rollout(chosen, written, [tokenizer.eos_token_id is not None] * len(rows), tokenizer)
    for row, text, score, judged in zip(
        rows, written, row_totals(rewards(chosen, rollout), rollout), judge_totals(judge, chosen, rollout), strict=True
    ):
        found[row] = ScoredAnswer(text, score, judged)
    return found


def judge_totals(judge: RewardModule | None, prompts: Prompts, rollout: Rollout) -> list[float | None]:
    """What the judge gives for every row; None without one."""
    return [None] * len(rollout) if judge is None else row_totals(judge(prompts, rollout), rollout)


def answer_text(value: object) -> str | None:
    """The text of an answer: one as it is, or what the assistant says at the end of a conversation."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        last: Message | Mapping[str, object] = value[-1]
        value = last.get("content") if last.get("role") == "assistant" else None
    return value if isinstance(value, str) else None


def row_sums(values: Tensor, counts: Tensor) -> list[float]:
    """Σ of the values of each row's actions, in float64."""
    return [float(row.double().sum()) for row in torch.split(values, counts.tolist())]
