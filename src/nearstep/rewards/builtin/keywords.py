"""Rewards for certain words: wanted, unwanted, those of the question, those that the source backs."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Values, read_texts
from nearstep.rewards.builtin.metadata import BuiltIn, ColumnReward, Metadata, column_name
from nearstep.rewards.builtin.text import content_words_of, prompt_texts_of, sentences_of, share, texts_of, words_of

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_WORD = re.compile(r"[^\W\d_][^\W_]*(?:['’-][^\W_]+)*")
_I = ("i", "i'd", "i'll", "i'm", "i've")


class _WordsReward(ColumnReward):
    """A reward for words that are given for all rows, or else by a column."""

    words: tuple[str, ...]

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if there are no words."""
        if not self.words:
            super().check_columns(columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        if not self.words:
            return super().__call__(completions, **columns)
        return [self.value(text, list(self.words)) for text in texts_of(completions)]


@dataclass(frozen=True)
class Keywords(_WordsReward):
    """The share of keywords that occur as whole words or phrases, in any case of letters."""

    __name__ = "keywords"
    metadata = Metadata(
        gaming="A bare list of the keywords earns 1.",
        needs="parameter words, or column keywords",
    )
    words: tuple[str, ...] = option((), "keywords of all rows")
    column: str = column_name("keywords", "column with the keywords of each row, where none are given for all")

    def value(self, text: str, cell: list[str]) -> float:
        return share(_occurs(word, text) for word in cell)


@dataclass(frozen=True)
class ForbiddenWords(_WordsReward):
    """-1 if any of the words or phrases occurs as a whole, in any case of letters, else 0."""

    __name__ = "forbidden_words"
    metadata = Metadata(
        low=-1,
        high=0,
        gaming="Spelling a word otherwise, or saying nothing, costs nothing.",
        needs="parameter words, or column forbidden_words",
    )
    words: tuple[str, ...] = option((), "words that no row may use")
    column: str = column_name("forbidden_words", "column with the words of each row, where none are given for all")

    def value(self, text: str, cell: list[str]) -> float:
        return -float(any(_occurs(word, text) for word in cell))


@dataclass(frozen=True)
class Relevance(BuiltIn):
    """The share of the content words of the prompt, or of a column, that the completion takes up.

    Of a conversation it is the last message of the user. A row without content words gives None.
    """

    __name__ = "relevance"
    metadata = Metadata(gaming="Repeating the question earns 1.")
    to: str = column_name("prompt", "prompt, or the column whose words should be taken up")

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there."""
        if self.to != "prompt":
            super().check_columns(columns)

    def __call__(self, completions: Sequence[object], prompts: Sequence[object], **columns: object) -> Values:
        if self.to == "prompt":
            topics = [set(content_words_of(text)) for text in prompt_texts_of(prompts)]
        else:
            cells = read_texts(self.__name__, self.to, columns)
            topics = [set(content_words_of(" ".join(cell or ()))) for cell in cells]
        mentioned = [set(content_words_of(text)) for text in texts_of(completions)]
        return [len(topic & now) / len(topic) if topic else None for topic, now in zip(topics, mentioned, strict=True)]


@dataclass(frozen=True)
class Grounding(ColumnReward):
    """The share of the numbers and names in the completion that its source contains: 1 minus what was made up.

    A name is a word with a capital that does not begin a sentence. A completion with neither makes nothing up: 1.
    """

    __name__ = "grounding"
    metadata = Metadata(
        gaming="Vague words without any number or name earn 1; wrong relations are not seen.",
        needs="column context",
    )
    context: str = column_name("context", "column with the source, or several")

    def value(self, text: str, cell: list[str]) -> float:
        if not words_of(text):
            return 0.0
        claims = {claim for sentence in sentences_of(text) for claim in _specifics(sentence)}
        source = " ".join(cell)
        known = {_name(word) for word in _WORD.findall(source)} | set(_NUMBER.findall(source))
        return len(claims & known) / len(claims) if claims else 1.0


def _occurs(phrase: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE) is not None


def _specifics(sentence: str) -> list[str]:
    """The numbers in a sentence, and its names in lower case."""
    _, *later = _WORD.findall(sentence) or [""]
    names = [_name(word) for word in later if word[0].isupper()]
    return _NUMBER.findall(sentence) + [name for name in names if name not in _I]


def _name(word: str) -> str:
    return word.lower().replace("’", "'").removesuffix("'s")
