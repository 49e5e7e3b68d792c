"""Rewards for how easily a completion is read, by the formulas of Flesch and Kincaid."""

from dataclasses import dataclass

from nearstep.config.settings import option
from nearstep.rewards.builtin.metadata import Metadata, TextReward
from nearstep.rewards.builtin.text import sentences_of, words_of


@dataclass(frozen=True)
class Readability(TextReward):
    """Flesch reading ease over 100, cut to its range: 206.835 - 1.015 · words/sentence - 84.6 · syllables/word.

    Syllables are where the hyphenation dictionary of pyphen may divide a word, plus one. English.
    """

    __name__ = "readability"
    metadata = Metadata(
        gaming="Short words in short sentences earn it without meaning anything.",
        package="pyphen",
        extra="metrics",
    )

    def value(self, text: str) -> float:
        if not words_of(text):
            return 0.0
        words_per_sentence, syllables_per_word = _rates(text)
        return min(1.0, max(0.0, 2.06835 - 0.01015 * words_per_sentence - 0.846 * syllables_per_word))


@dataclass(frozen=True)
class ReadingGrade(TextReward):
    """1 at the wanted school grade of Flesch and Kincaid, falling evenly to 0 some grades away.

    The grade is 0.39 · words/sentence + 11.8 · syllables/word - 15.59, syllables as for readability. English.
    """

    __name__ = "reading_grade"
    metadata = Metadata(
        gaming="The lengths of words and sentences are all it sees.",
        package="pyphen",
        extra="metrics",
    )
    grade: float = option(8.0, "grade wanted, 8 for plain newspaper English")
    spread: float = option(4.0, "grades away from it that earn 0", above=0)

    def value(self, text: str) -> float:
        if not words_of(text):
            return 0.0
        words_per_sentence, syllables_per_word = _rates(text)
        grade = 0.39 * words_per_sentence + 11.8 * syllables_per_word - 15.59
        return max(0.0, 1 - abs(grade - self.grade) / self.spread)


def _rates(text: str) -> tuple[float, float]:
    """Words per sentence and syllables per word of a text with at least one word."""
    import pyphen

    dictionary = pyphen.Pyphen(lang="en_US")
    words = words_of(text)
    syllables = sum(len(dictionary.positions(word)) + 1 for word in words)
    return len(words) / len(sentences_of(text)), syllables / len(words)
