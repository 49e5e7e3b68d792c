"""Which of two summaries is better, by counting facts: the judge of the demo, which no training ever sees."""

import re
from dataclasses import dataclass

from nearstep.common.intervals import wilson
from nearstep.demo.facts import VALUES, Facts, Slot
from nearstep.demo.world import Summary

WORD_LIMIT = 32  # every fact of a post can be stated in fewer words
PATTERNS = {
    slot: re.compile(r"\b(?:" + "|".join(re.escape(value) for value in values) + r")\b", re.IGNORECASE)
    for slot, values in VALUES.items()
}


@dataclass(frozen=True)
class FactCount:
    """What a reader finds in one summary."""

    right: int  # facts of the post that are stated
    wrong: int  # statements that the post does not make
    excess_words: int  # repeated or beyond the limit
    finished: bool

    @property
    def points(self) -> float:
        """A right fact counts 1, a wrong one −1, a missing end −1, ten needless words −1."""
        return self.right - self.wrong - self.excess_words / 10 - (not self.finished)


def judge(facts: Facts, summary: Summary) -> FactCount:
    """Read a summary of a post that tells `facts`."""
    right = wrong = 0
    for slot in Slot:
        stated = {match.lower() for match in PATTERNS[slot].findall(summary.text)}
        truth = facts[slot].lower() if slot in facts else None
        right += truth in stated
        wrong += len(stated - {truth})
    return FactCount(right, wrong, max(0, len(summary.text.split()) - WORD_LIMIT), summary.finished)


@dataclass(frozen=True)
class ShareOfFacts:
    """A share of `count` comparisons, ties counted as half."""

    wins: int
    ties: int
    count: int

    @property
    def value(self) -> float:
        """Between 0 and 1."""
        return (self.wins + self.ties / 2) / self.count

    def interval(self) -> tuple[float, float]:
        """Wilson's, of 95 % confidence."""
        return wilson(self.value, self.count)
