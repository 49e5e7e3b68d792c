"""Rewards for how a completion is worded: repetition, diversity, sentence form, links between sentences, plainness."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from nearstep.config.settings import option
from nearstep.rewards.builtin.metadata import Metadata, Values, check_order, settle
from nearstep.rewards.builtin.text import content_words_of, sentences_of, texts_of, words_of

FILLERS = (
    "actually|as a matter of fact|as previously mentioned|at the end of the day|at this point in time|basically"
    "|due to the fact that|for all intents and purposes|in order to|in terms of|it goes without saying"
    "|it is important to note that|it is worth noting that|it should be noted that|just|kind of|literally"
    "|needless to say|quite|really|sort of|the fact that|very"
)
CONNECTIVES = (
    "accordingly|additionally|afterwards|also|although|and|as a result|because|besides|but|by contrast|consequently"
    "|conversely|finally|first|for example|for instance|furthermore|hence|however|in addition|in contrast|in particular"
    "|in short|indeed|instead|likewise|meanwhile|moreover|nevertheless|next|on the other hand|otherwise|second"
    "|similarly|since|so|still|that is|then|therefore|third|thus|yet"
)
POINTERS = "he|it|she|that|these|they|this|those|such|both|its|his|her|their"

_FILLER = re.compile(rf"\b(?:{FILLERS})\b", re.IGNORECASE)
_LINK = re.compile(rf"\W*(?:{CONNECTIVES}|{POINTERS})\b", re.IGNORECASE)
_ADDRESS = re.compile(r"\b(?:you|your|yours|you're|you'll|you've|let's)\b|\?", re.IGNORECASE)
_OPENING = "\"'“‘([*-•#>"
_CLOSING = "\"'”’)]*"


@dataclass(frozen=True)
class Conciseness:
    """The share of words that are no filler, times the share of content words not carried over from the last sentence.

    Of two neighbouring sentences the overlap is that of their sets of content words (Jaccard).
    """

    __name__: ClassVar[str] = "conciseness"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Only listed English fillers count, and one short sentence has no overlap: it scores 1."
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_conciseness(text) for text in texts_of(completions)]


@dataclass(frozen=True)
class RepetitionPenalty:
    """Minus the share of n-grams of words that came before in the same completion."""

    __name__: ClassVar[str] = "repetition_penalty"
    metadata: ClassVar[Metadata] = Metadata(
        low=-1, high=0, gaming="Saying nothing, or the same in other words, costs nothing; longer texts repeat more."
    )
    ngram_words: int = option(3, "words in an n-gram", at_least=1)

    def __post_init__(self) -> None:
        settle(self)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [self._penalty(words_of(text)) for text in texts_of(completions)]

    def _penalty(self, words: list[str]) -> float:
        ngrams = [tuple(words[start : start + self.ngram_words]) for start in range(len(words) - self.ngram_words + 1)]
        return len(set(ngrams)) / len(ngrams) - 1 if ngrams else 0.0


@dataclass(frozen=True)
class Diversity:
    """Different words over all words, averaged over every window of neighbouring words.

    A window keeps the number from falling with length (moving-average type-token ratio; Covington and McFall 2010).
    """

    __name__: ClassVar[str] = "diversity"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Texts shorter than a window are rarely below 1, and a list of random words scores 1."
    )
    window_words: int = option(50, "words in a window", at_least=2)

    def __post_init__(self) -> None:
        settle(self)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [self._ratio(words_of(text)) for text in texts_of(completions)]

    def _ratio(self, words: list[str]) -> float:
        if not words:
            return 0.0
        width = min(self.window_words, len(words))
        windows = [words[start : start + width] for start in range(len(words) - width + 1)]
        return sum(len(set(window)) for window in windows) / (width * len(windows))


@dataclass(frozen=True)
class Fluency:
    """The share of well-formed sentences: a capital or digit first, an end mark last, neither too short nor long."""

    __name__: ClassVar[str] = "fluency"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Form only: “Blue is of the.” is fine by it. Lists and code score low. See likelihood."
    )
    minimum_words: int = option(3, "fewest words of a good sentence", at_least=1)
    maximum_words: int = option(40, "most words of a good sentence", at_least=1)

    def __post_init__(self) -> None:
        settle(self)
        check_order(self, "minimum_words", "maximum_words")

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_share([self._is_good(sentence) for sentence in sentences_of(text)]) for text in texts_of(completions)]

    def _is_good(self, sentence: str) -> bool:
        inner = sentence.strip().lstrip(_OPENING).lstrip().rstrip(_CLOSING)
        starts_well = not inner[:1].islower() and inner[:1].isalnum()
        return (
            starts_well
            and inner.endswith((".", "!", "?", "…", "。", "！", "？"))
            and self.minimum_words <= len(words_of(inner)) <= self.maximum_words
        )


@dataclass(frozen=True)
class Coherence:
    """The share of neighbouring sentences that are linked: by a content word, or by how the second begins.

    Links at the beginning are connectives (however, because, …) and words that point back (this, they, …). A
    sentence with no new content word is no link, and a single sentence has none: 0.
    """

    __name__: ClassVar[str] = "coherence"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="“And” before every sentence earns 1, whatever the sentences say; English only."
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_share([_linked(*pair) for pair in pairwise(sentences_of(text))]) for text in texts_of(completions)]


@dataclass(frozen=True)
class Engagement:
    """The share of sentences that address the reader: by you or let's, or by a question."""

    __name__: ClassVar[str] = "engagement"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="A text of questions only earns 1: give it a small weight; English only."
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [
            _share([bool(_ADDRESS.search(sentence)) for sentence in sentences_of(text)])
            for text in texts_of(completions)
        ]


def _share(flags: Collection[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _conciseness(text: str) -> float:
    words = words_of(text)
    if not words:
        return 0.0
    filling = sum(len(words_of(match.group())) for match in _FILLER.finditer(text))
    overlaps = [_overlap(set(content_words_of(a)), set(content_words_of(b))) for a, b in pairwise(sentences_of(text))]
    return (1 - filling / len(words)) * (1 - (sum(overlaps) / len(overlaps) if overlaps else 0))


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second) if first | second else 0.0


def _linked(first: str, second: str) -> bool:
    before, now = set(content_words_of(first)), set(content_words_of(second))
    if now <= before:
        return False
    return bool(now & before) or bool(_LINK.match(second))
