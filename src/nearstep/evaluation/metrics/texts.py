"""How varied texts are: different n-grams, likeness to each other, repetition within a text."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import islice

import numpy as np

from nearstep.common.intervals import Z_95
from nearstep.evaluation.metrics.figures import Bootstrap, Figure, Floats, grouped, mean, statistic
from nearstep.rewards.builtin.reference import Bleu
from nearstep.rewards.builtin.text import words_of

COMPARED = 50  # other texts that a text is compared with: BLEU against all would be quadratic


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Runs of n neighbouring words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def distinct(texts: Sequence[str], prompts: Sequence[int], n: int) -> Figure:
    """distinct-n: different n-grams of words over all n-grams, of all texts together (1510.03055); n counts texts.

    It falls with the amount of text: compare equally many texts. The interval is that of the jackknife, which leaves
    out one prompt after the other: to draw prompts twice would make texts look alike.
    """
    by_prompt = [
        Counter(gram for text in group for gram in ngrams(words_of(text), n)) for group in grouped(texts, prompts)
    ]
    seen = Counter(gram for each in by_prompt for gram in each)  # in how many prompts
    total = sum(each.total() for each in by_prompt)
    if not total:
        return Figure.none(f"no text has {n} words")
    value, count = len(seen) / total, len(by_prompt)
    without = [
        (len(seen) - sum(seen[gram] == 1 for gram in each)) / (total - each.total())
        for each in by_prompt
        if total > each.total()
    ]
    if len(without) < 2:
        return Figure(value, len(texts), count)
    middle = math.fsum(without) / len(without)
    error = math.sqrt((count - 1) / count * math.fsum((each - middle) ** 2 for each in without))
    low, high = max(0.0, value - Z_95 * error), min(1.0, value + Z_95 * error)
    return Figure(value, len(texts), count, low, high, "jackknife")


def repetition(text: str, n: int = 3) -> float:
    """The share of n-grams of words that came before in the same text; 0 where there is none."""
    grams = ngrams(words_of(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str], prompts: Sequence[int], bootstrap: Bootstrap) -> Figure:
    """The mean BLEU-4 of each text against the other texts of its prompt, of all where prompts have one (1802.01886).

    Each is compared with at most 50 others. High is alike. Raises RewardError where sacrebleu is not installed.
    """
    likeness = Bleu()
    likeness.need_package()
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    if all(len(rows) == 1 for rows in groups.values()):
        groups = {0: list(range(len(texts)))}
    values: list[float | None] = [None] * len(texts)
    for rows in groups.values():
        for row in rows:
            others = [texts[other] for other in islice((each for each in rows if each != row), COMPARED)]
            values[row] = likeness.value(texts[row], others) if others and texts[row].strip() else None
    return mean(values, prompts, bootstrap, why="there are no two texts to compare")


def spread(values: Sequence[int | float | None], prompts: Sequence[int], bootstrap: Bootstrap) -> Figure:
    """The standard deviation of values over all rows (over n, not n − 1)."""
    return statistic(lambda found: float(found.std()), values, prompts, bootstrap)


def median(values: Floats) -> float:
    """The middle value."""
    return float(np.median(values))
