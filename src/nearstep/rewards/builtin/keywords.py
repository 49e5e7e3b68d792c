"""Rewards for certain words: wanted, unwanted, those of the question, those that the source backs."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Cell, need_column, read_texts, where_given
from nearstep.rewards.builtin.metadata import Metadata, Values, settle
from nearstep.rewards.builtin.text import content_words_of, prompt_texts_of, sentences_of, texts_of, words_of

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_WORD = re.compile(r"[^\W\d_][^\W_]*(?:['’-][^\W_]+)*")
_I = ("i", "i'd", "i'll", "i'm", "i've")


@dataclass(frozen=True)
class Keywords:
    """The share of keywords that occur as whole words or phrases, in any case of letters."""

    __name__: ClassVar[str] = "keywords"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="A bare list of the keywords earns 1.",
        needs="parameter words, or column keywords",
    )
    words: tuple[str, ...] = option((), "keywords of all rows")
    column: str = option("keywords", "column with the keywords of each row, where none are given for all")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if there are no keywords."""
        if not self.words:
            need_column(self, "column", self.column, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts = texts_of(completions)
        wanted = _words_by_row(self, texts, columns)
        return where_given(texts, wanted, lambda text, words: sum(_occurs(w, text) for w in words) / len(words))


@dataclass(frozen=True)
class ForbiddenWords:
    """-1 if any of the words or phrases occurs as a whole, in any case of letters, else 0."""

    __name__: ClassVar[str] = "forbidden_words"
    metadata: ClassVar[Metadata] = Metadata(
        low=-1,
        high=0,
        gaming="Spelling a word otherwise, or saying nothing, costs nothing.",
        needs="parameter words, or column forbidden_words",
    )
    words: tuple[str, ...] = option((), "words that no row may use")
    column: str = option("forbidden_words", "column with the words of each row, where none are given for all")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if there are no words."""
        if not self.words:
            need_column(self, "column", self.column, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts = texts_of(completions)
        unwanted = _words_by_row(self, texts, columns)
        return where_given(texts, unwanted, lambda text, words: -float(any(_occurs(w, text) for w in words)))


def _words_by_row(reward: Keywords | ForbiddenWords, texts: Sequence[str], columns: Mapping[str, object]) -> list[Cell]:
    """The words that are given for all rows, else those in the column."""
    return [list(reward.words)] * len(texts) if reward.words else read_texts(reward, reward.column, columns)


@dataclass(frozen=True)
class Relevance:
    """The share of the content words of the prompt, or of a column, that the completion takes up.

    Of a conversation it is the last message of the user. A row without content words gives None.
    """

    __name__: ClassVar[str] = "relevance"
    metadata: ClassVar[Metadata] = Metadata(gaming="Repeating the question earns 1.")
    to: str = option("prompt", "prompt, or the column whose words should be taken up")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there."""
        if self.to != "prompt":
            need_column(self, "to", self.to, columns)

    def __call__(self, completions: Sequence[object], prompts: Sequence[object], **columns: object) -> Values:
        if self.to == "prompt":
            topics = [set(content_words_of(text)) for text in prompt_texts_of(prompts)]
        else:
            topics = [set(content_words_of(" ".join(cell or ()))) for cell in read_texts(self, self.to, columns)]
        mentioned = [set(content_words_of(text)) for text in texts_of(completions)]
        return [len(topic & now) / len(topic) if topic else None for topic, now in zip(topics, mentioned, strict=True)]


@dataclass(frozen=True)
class Grounding:
    """The share of the numbers and names in the completion that its source contains: 1 minus what was made up.

    A name is a word with a capital that does not begin a sentence. A completion with neither makes nothing up: 1.
    """

    __name__: ClassVar[str] = "grounding"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Vague words without any number or name earn 1; wrong relations are not seen.",
        needs="column context",
    )
    context: str = option("context", "column with the source, or several")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there."""
        need_column(self, "context", self.context, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return where_given(texts_of(completions), read_texts(self, self.context, columns), _grounded)


def _occurs(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def _grounded(text: str, sources: list[str]) -> float:
    if not words_of(text):
        return 0.0
    claims = {claim for sentence in sentences_of(text) for claim in _specifics(sentence)}
    source = " ".join(sources)
    known = {_name(word) for word in _WORD.findall(source)} | set(_NUMBER.findall(source))
    return len(claims & known) / len(claims) if claims else 1.0


def _specifics(sentence: str) -> list[str]:
    """The numbers in a sentence, and its names in lower case."""
    _, *later = _WORD.findall(sentence) or [""]
    names = [_name(word) for word in later if word[0].isupper()]
    return _NUMBER.findall(sentence) + [name for name in names if name not in _I]


def _name(word: str) -> str:
    return word.lower().replace("’", "'").removesuffix("'s")
