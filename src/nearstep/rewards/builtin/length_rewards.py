"""Rewards for how long a completion is."""

from collections.abc import Sequence
from dataclasses import dataclass

from nearstep.common.errors import ConfigError
from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Values
from nearstep.rewards.builtin.metadata import BuiltIn, Metadata, TextReward, check_order, required
from nearstep.rewards.builtin.text import words_of


@dataclass(frozen=True)
class Length(TextReward):
    """1 if the number of words lies in a range, else 0."""

    __name__ = "length"
    metadata = Metadata(gaming="Any words will do, the same one over and over included.")
    minimum_words: int = option(10, "fewest words", at_least=1)
    maximum_words: int = option(500, "most words", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self, "minimum_words", "maximum_words")

    def value(self, text: str) -> float:
        return float(self.minimum_words <= len(words_of(text)) <= self.maximum_words)


@dataclass(frozen=True)
class LengthTarget(TextReward):
    """1 at the wanted number of words, falling evenly to 0 at none and at twice as many."""

    __name__ = "length_target"
    metadata = Metadata(gaming="Any words will do, the same one over and over included.")
    words: int = option(120, "number of words wanted", at_least=1)

    def value(self, text: str) -> float:
        return max(0.0, 1 - abs(len(words_of(text)) - self.words) / self.words)


@dataclass(frozen=True)
class Brevity(TextReward):
    """1 up to a number of words, from there falling evenly to 0; nothing said is worth 0 too."""

    __name__ = "brevity"
    metadata = Metadata(gaming="One word earns it all: add a reward for what is said.")
    full_words: int = option(100, "most words that earn 1", at_least=1)
    zero_words: int = option(500, "fewest words that earn 0", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.full_words >= self.zero_words:
            raise ConfigError(f"brevity: full_words = {self.full_words} must be below zero_words = {self.zero_words}")

    def value(self, text: str) -> float:
        count = len(words_of(text))
        if count == 0:
            return 0.0
        return min(1.0, max(0.0, (self.zero_words - count) / (self.zero_words - self.full_words)))


@dataclass(frozen=True)
class OverlongPenalty(BuiltIn):
    """0 while tokens are well below the limit, falling evenly to -1 over the last of them (DAPO, arXiv 2503.14476)."""

    __name__ = "overlong_penalty"
    metadata = Metadata(
        low=-1, high=0, gaming="Silence costs nothing: it only makes sense beside a reward for what is said."
    )
    maximum_tokens: int = required("tokens, the stop token included, from which on the penalty is -1")
    buffer_tokens: int = required("tokens before the limit over which the penalty grows")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.buffer_tokens <= self.maximum_tokens:
            raise ConfigError(
                f"overlong_penalty: buffer_tokens = {self.buffer_tokens} must be at least 1 "
                f"and at most maximum_tokens = {self.maximum_tokens}"
            )

    def __call__(
        self, completions: Sequence[object], completion_ids: Sequence[Sequence[int]], **columns: object
    ) -> Values:
        start = self.maximum_tokens - self.buffer_tokens
        return [-min(1.0, max(0, len(ids) - start) / self.buffer_tokens) for ids in completion_ids]
