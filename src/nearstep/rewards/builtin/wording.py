"""Rewards for how a completion is worded: repetition, diversity, sentence form, links between sentences, plainness."""

import re
from dataclasses import dataclass
from itertools import pairwise

from nearstep.config.settings import option
from nearstep.rewards.builtin.metadata import Metadata, TextReward, check_order
from nearstep.rewards.builtin.text import ENGLISH, content_words_of, sentences_of, share, words_of

_FILLER = re.compile(rf"\b(?:{'|'.join(ENGLISH['fillers'])})\b", re.IGNORECASE)
_LINK = re.compile(rf"\W*(?:{'|'.join([*ENGLISH['connectives'], *ENGLISH['pointers']])})\b", re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:you|your|yours|you're|you'll|you've|let's)\b|\?", re.IGNORECASE)
_OPENING = "\"'“‘([*-•#>"
_CLOSING = "\"'”’)]*"


@dataclass(frozen=True)
class Conciseness(TextReward):
    """The share of words that are no filler, times the share of content words not carried over from the last sentence.

    Of two neighbouring sentences the overlap is that of their sets of content words (Jaccard).
    """

    __name__ = "conciseness"
    metadata = Metadata(gaming="Only listed English fillers count, and one short sentence has no overlap: it scores 1.")

    def value(self, text: str) -> float:
        words = words_of(text)
        if not words:
            return 0.0
        filling = sum(len(words_of(match.group())) for match in _FILLER.finditer(text))
        content = [set(content_words_of(sentence)) for sentence in sentences_of(text)]
        overlaps = [_overlap(first, second) for first, second in pairwise(content)]
        return (1 - filling / len(words)) * (1 - (sum(overlaps) / len(overlaps) if overlaps else 0))


@dataclass(frozen=True)
class RepetitionPenalty(TextReward):
    """Minus the share of n-grams of words that came before in the same completion."""

    __name__ = "repetition_penalty"
    metadata = Metadata(
        low=-1, high=0, gaming="Saying nothing, or the same in other words, costs nothing; longer texts repeat more."
    )
    ngram_words: int = option(3, "words in an n-gram", at_least=1)

    def value(self, text: str) -> float:
        words = words_of(text)
        ngrams = [tuple(words[start : start + self.ngram_words]) for start in range(len(words) - self.ngram_words + 1)]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


@dataclass(frozen=True)
class Diversity(TextReward):
    """Different words over all words, averaged over every window of neighbouring words.

    A window keeps the number from falling with length (moving-average type-token ratio; Covington and McFall 2010).
    """

    __name__ = "diversity"
    metadata = Metadata(gaming="Texts shorter than a window are rarely below 1, and a list of random words scores 1.")
    window_words: int = option(50, "words in a window", at_least=2)

    def value(self, text: str) -> float:
        words = words_of(text)
        if not words:
            return 0.0
        width = min(self.window_words, len(words))
        windows = [words[start : start + width] for start in range(len(words) - width + 1)]
        return sum(len(set(window)) for window in windows) / (width * len(windows))


@dataclass(frozen=True)
class Fluency(TextReward):
    """The share of well-formed sentences: a capital or digit first, an end mark last, neither too short nor long."""

    __name__ = "fluency"
    metadata = Metadata(gaming="Form only: “Blue is of the.” is fine by it. Lists and code score low. See likelihood.")
    minimum_words: int = option(3, "fewest words of a good sentence", at_least=1)
    maximum_words: int = option(40, "most words of a good sentence", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "minimum_words", "maximum_words")

    def value(self, text: str) -> float:
        return share(self._is_good(sentence) for sentence in sentences_of(text))

    def _is_good(self, sentence: str) -> bool:
        inner = sentence.strip().lstrip(_OPENING).lstrip().rstrip(_CLOSING)
        starts_well = not inner[:1].islower() and inner[:1].isalnum()
        return (
            starts_well
            and inner.endswith((".", "!", "?", "…", "。", "！", "？"))
            and self.minimum_words <= len(words_of(inner)) <= self.maximum_words
        )


@dataclass(frozen=True)
class Coherence(TextReward):
    """The share of neighbouring sentences that are linked: by a content word, or by how the second begins.

    Links at the beginning are connectives (however, because, …) and words that point back (this, they, …). A
    sentence with no new content word is no link, and a single sentence has none: 0.
    """

    __name__ = "coherence"
    metadata = Metadata(gaming="“And” before every sentence earns 1, whatever the sentences say; English only.")

    def value(self, text: str) -> float:
        return share(_linked(*pair) for pair in pairwise(sentences_of(text)))


@dataclass(frozen=True)
class Engagement(TextReward):
    """The share of sentences that address the reader: by you or let's, or by a question."""

    __name__ = "engagement"
    metadata = Metadata(gaming="A text of questions only earns 1: give it a small weight; English only.")

    def value(self, text: str) -> float:
        return share(_ADDRESS.search(sentence) is not None for sentence in sentences_of(text))


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second) if first | second else 0.0


def _linked(first: str, second: str) -> bool:
    before, now = set(content_words_of(first)), set(content_words_of(second))
    if now <= before:
        return False
    return bool(now & before) or bool(_LINK.match(second))
