"""How rewards agree with preferences: accuracy on pairs, and RewardBench 2's best of four and ties."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nearstep.evaluation.metrics.figures import Bootstrap, DrawnPrompts, Figure, mean, percentiles, share

NO_PAIRS = "the data holds no preference pairs"


def pair_result(chosen: float, rejected: float) -> float | None:
    """1 where the better answer has the higher reward, ½ for a tie, 0 else; None where either has none."""
    if not (math.isfinite(chosen) and math.isfinite(rejected)):
        return None
    return 0.5 if chosen == rejected else float(chosen > rejected)


def reward_accuracy(
    chosen: Sequence[int | float], rejected: Sequence[int | float], prompts: Sequence[int], bootstrap: Bootstrap
) -> Figure:
    """The mean of `pair_result`; n counts pairs."""
    results = [pair_result(better, worse) for better, worse in zip(chosen, rejected, strict=True)]
    return share(results, prompts, bootstrap, why=NO_PAIRS if not results else "no pair has two rewards")


def reward_margin(
    chosen: Sequence[int | float], rejected: Sequence[int | float], prompts: Sequence[int], bootstrap: Bootstrap
) -> Figure:
    """The mean of reward(chosen) − reward(rejected)."""
    margins = [better - worse for better, worse in zip(chosen, rejected, strict=True)]
    return mean(margins, prompts, bootstrap, why=NO_PAIRS if not margins else "no pair has two rewards")


def best_of(correct: Sequence[int | float], incorrect: Sequence[int | float]) -> float | None:
    """1 if a correct answer alone has the highest reward; shared among all that have it: 1/k of k with one correct.

    None where a reward is missing. Source: RewardBench 2 (2506.01937), all subsets but Ties.
    """
    rewards = [*correct, *incorrect]
    if not correct or not all(map(math.isfinite, rewards)):
        return None
    highest = max(rewards)
    return list(correct).count(highest) / rewards.count(highest)


@dataclass(frozen=True)
class TiesPrompt:
    """The rewards of one prompt of the subset Ties."""

    correct: Sequence[int | float]
    incorrect: Sequence[int | float]

    @property
    def gap(self) -> float:
        """Worst correct − best incorrect answer; above 0 every correct answer is ahead."""
        return min(self.correct) - max(self.incorrect)

    @property
    def spread(self) -> float:
        """Best − worst correct answer: how unequal answers look that are equally right."""
        return max(self.correct) - min(self.correct)

    @property
    def scored(self) -> bool:
        """Whether every answer has a reward."""
        return all(map(math.isfinite, [*self.correct, *self.incorrect]))


def ties_score(reference: Mapping[str, TiesPrompt], tied: Mapping[str, TiesPrompt]) -> float:
    """RewardBench 2's score of the subset Ties, at most 1.01; prompts by number, `ref:n` belongs to `tied:n`.

    .3 accuracy(tied) + .3 accuracy(ref) + .2 mean[gap_tied > spread] + .2 mean[min(gap_ref, gap_tied) > spread]
    + .01 mean tanh(min(gap_ref, gap_tied) / spread − 1), the last term 0 where the spread is. Source: 2506.01937.
    """
    return ties_score_of(list(reference.values()), list(tied.values()), [
        (reference[number], tied[number]) for number in tied if number in reference
    ])  # fmt: skip


def ties_score_of(
    reference: Sequence[TiesPrompt], tied: Sequence[TiesPrompt], both: Sequence[tuple[TiesPrompt, TiesPrompt]]
) -> float:
    """The same of prompts without their numbers."""
    least = [(min(one.gap, several.gap), several.spread) for one, several in both]
    return (
        0.3 * _share([prompt.gap > 0 for prompt in tied])
        + 0.3 * _share([prompt.gap > 0 for prompt in reference])
        + 0.2 * _share([several.gap > several.spread for _, several in both])
        + 0.2 * _share([gap > spread for gap, spread in least])
        + 0.01 * _share([math.tanh(gap / spread - 1) if spread else 0.0 for gap, spread in least])
    )


def ties_figure(reference: Mapping[str, TiesPrompt], tied: Mapping[str, TiesPrompt], bootstrap: Bootstrap) -> Figure:
    """The score with its interval; `ref:n` and `tied:n` are drawn together, n counts prompts of both kinds."""
    whole = len(reference) + len(tied)
    one = {number: prompt for number, prompt in reference.items() if prompt.scored}
    several = {number: prompt for number, prompt in tied.items() if prompt.scored}
    left_out = whole - len(one) - len(several)
    numbers = sorted({*one, *several})
    if not numbers:
        return Figure.none("no prompt has all its rewards", left_out)

    def drawn_score(drawn: DrawnPrompts) -> float:
        names = [numbers[each] for each in drawn]
        return ties_score_of(
            [one[name] for name in names if name in one],
            [several[name] for name in names if name in several],
            [(one[name], several[name]) for name in names if name in one and name in several],
        )

    value, count = ties_score(one, several), len(one) + len(several)
    if len(numbers) == 1:
        return Figure(value, count, 1, left_out=left_out)
    low, high = percentiles(bootstrap.statistic(drawn_score, len(numbers)))
    return Figure(value, count, len(numbers), low, high, "bootstrap", left_out)


def mean_of_subsets(subsets: Sequence[Figure]) -> Figure:
    """The plain mean of the scores of all subsets, each weighing the same; n counts prompts.

    Subsets are drawn apart, so that the squares of their intervals' half widths add up.
    """
    known = [figure for figure in subsets if figure.value is not None]
    if not known:
        return Figure.none("no subset has a score")
    value, prompts = float(np.mean([figure.value for figure in known])), sum(figure.prompts for figure in known)
    halves = [(f.high - f.low) / 2 for f in known if f.high is not None and f.low is not None]
    if len(halves) < len(known):
        return Figure(value, prompts, prompts)
    half = math.hypot(*halves) / len(known)
    return Figure(value, prompts, prompts, value - half, value + half, "combined")


def _share(values: Sequence[int | float]) -> float:
    return sum(values) / len(values) if values else 0.0
