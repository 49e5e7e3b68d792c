"""A judge as a reward function: its grade, or how often it prefers a response to a reference or to its group."""

import json
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any, TypeAlias

from nearstep.common.errors import ConfigError, RewardError
from nearstep.common.messages import PromptInput
from nearstep.judges.protocol import Graded, Pair, PairVerdict, TextGrade
from nearstep.rewards.builtin.columns import need_column, read_texts
from nearstep.rewards.builtin.text import texts_of
from nearstep.rewards.judge_spec import GROUP
from nearstep.rewards.judging import Judge

ALONE = 0.5  # the share of wins of a response that has no other beside it
JudgedRows: TypeAlias = list[float | RewardError | None]
Disagreements: TypeAlias = list[float | None]


class JudgeReward:
    """A reward function that asks a judge. A question that failed is a failed row, and never a reward.

    `against` is a column with a reference or several, "group" for the other responses to the same prompt in the batch;
    None for the judge's grade.
    """

    __name__ = "judge"

    def __init__(self, judge: Judge, against: str | None = None) -> None:
        self._judge, self._against = judge, against

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column with references is not there, ConfigError if the judge cannot grade."""
        if self._against is None and not self._judge.source.grades:
            raise ConfigError(
                f"reward 'judge': {self._judge.name} compares and does not grade: add ,against=COLUMN or ,against=group"
            )
        if self._against not in (None, GROUP):
            need_column(self.__name__, "against", str(self._against), columns)

    def prepare(self) -> None:
        """Load the judge's model."""
        self._judge.source.prepare()

    def __call__(
        self,
        prompts: Sequence[PromptInput],
        completions: Sequence[object],
        log_extra: Callable[[str, Sequence[object]], None],
        log_metric: Callable[[str, float], None],
        **columns: object,
    ) -> JudgedRows | Awaitable[JudgedRows]:
        """One reward for each completion: 0 to 1 against something, else a grade."""
        texts = texts_of(completions)
        answers: Any
        read: Callable[[list[Any]], tuple[JudgedRows, Disagreements]] = _graded
        if self._against is None:
            questions = [Graded(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
            answers = self._judge.source.grade_all(questions)
        else:
            matches = (
                _of_groups(prompts, texts)
                if self._against == GROUP
                else _of_references(prompts, texts, read_texts(self.__name__, self._against, columns))
            )
            answers, read = self._judge.source.compare_all(matches.pairs), matches.rewards

        def logged(found: list[Any]) -> JudgedRows:
            rewards, disagreements = read(found)
            log_extra("judge_disagreement", disagreements)
            if known := [value for value in disagreements if value is not None]:
                log_metric("judge/disagreement", fmean(known))
            log_metric("judge/cost", self._judge.usage.cost)
            return rewards

        return logged(answers) if isinstance(answers, list) else _then(answers, logged)


async def _then(waiting: Awaitable[list[Any]], read: Callable[[list[Any]], JudgedRows]) -> JudgedRows:
    return read(await waiting)


def _graded(grades: Sequence[TextGrade]) -> tuple[JudgedRows, Disagreements]:
    rewards: JudgedRows = [RewardError(str(one.failure)) if one.score is None else one.score for one in grades]
    return rewards, [grade.disagreement for grade in grades]


@dataclass
class Matches:
    """Which texts are compared for which rows; `without` says what a row gets that is in no match."""

    rows: list[tuple[int, int | None]] = field(default_factory=list)  # of both texts, None for a reference
    pairs: list[Pair] = field(default_factory=list)
    without: JudgedRows = field(default_factory=list)

    def rewards(self, comparisons: Sequence[PairVerdict]) -> tuple[JudgedRows, Disagreements]:
        """The mean probability that a row is the better one; an error where all its comparisons failed."""
        wins: dict[int, list[float]] = defaultdict(list)
        disagreements: dict[int, list[float]] = defaultdict(list)
        rewards = list(self.without)
        for (one, other), comparison in zip(self.rows, comparisons, strict=True):
            for row in (one,) if other is None else (one, other):
                probability = comparison.probability
                if probability is None:
                    rewards[row] = RewardError(str(comparison.failure))
                    continue
                wins[row].append(probability if row == one else 1.0 - probability)
                if comparison.disagreement is not None:
                    disagreements[row].append(comparison.disagreement)
        for row, shares in wins.items():
            rewards[row] = fmean(shares)
        means = [fmean(disagreements[row]) if row in disagreements else None for row in range(len(rewards))]
        return rewards, means


def _of_references(
    prompts: Sequence[PromptInput], texts: Sequence[str], references: Sequence[list[str] | None]
) -> Matches:
    """Every text against each of its references; None for a row without any."""
    matches = Matches(without=[None] * len(texts))
    for row, cell in enumerate(references):
        matches.rows += [(row, None)] * len(cell or ())
        matches.pairs += [Pair(prompts[row], texts[row], reference) for reference in cell or ()]
    return matches


def _of_groups(prompts: Sequence[PromptInput], texts: Sequence[str]) -> Matches:
    """Every text against all others to its prompt; one that is alone, as in evaluations, neither wins nor loses."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, prompt in enumerate(prompts):
        groups[json.dumps(prompt, default=str)].append(row)
    rows = [pair for group in groups.values() for pair in combinations(group, 2)]
    pairs = [Pair(prompts[one], texts[one], texts[other]) for one, other in rows]
    return Matches([*rows], pairs, [ALONE] * len(texts))
