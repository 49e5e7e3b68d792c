"""Rewards for English words and phrases that go with a manner of speaking; what they cannot see is said of each.

The balance of two lists of cues is (1 + good) / (2 + good + bad), Laplace's estimate of the share of good ones: text
without any is worth ½, each cue counts once however often it stands there, and no number of them reaches 0 or 1.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from nearstep.rewards.builtin import cue_phrases
from nearstep.rewards.builtin.metadata import Metadata, Values
from nearstep.rewards.builtin.text import sentences_of, texts_of, words_of

_CAUSE = re.compile(
    r"\b(?:because|since|therefore|thus|hence|consequently|as a result|so that|due to|owing to|thanks to|leads? to"
    r"|led to|caus(?:es?|ed|ing)|results? in|resulted in|results? from|that is why|which is why|for this reason"
    r"|in turn)\b",
    re.IGNORECASE,
)


def _word(alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


_IF, _HAD, _WOULD = _word("if"), _word("had|were|hadn't|weren't"), _word("would|could|might")
# Each in this order, with anything between. One pattern with .* between would take time with a power of the length.
_COUNTERFACTUALS = (
    (_word(r"(?:would|could|might) (?:not )?have|what if|suppose|imagine (?:that|if)"),),
    (_IF, _HAD, _WOULD),
    (_word(r"(?:had|were) \w+"), re.compile(","), _WOULD),
    (_WOULD, _IF, _HAD),
    (_word("otherwise"), _word("would")),
)


@dataclass(frozen=True)
class Politeness:
    """The balance of polite and rude words; ½ for text with neither."""

    __name__: ClassVar[str] = "politeness"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="“Please, thank you, my pleasure” before any text; sarcasm and quotations are not seen."
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_balance(text, cue_phrases.POLITE, cue_phrases.RUDE) for text in texts_of(completions)]


@dataclass(frozen=True)
class Helpfulness:
    """The balance of words of helping (steps, examples, advice, reasons) and of evading or refusing; ½ for neither."""

    __name__: ClassVar[str] = "helpfulness"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="The manner of help is all it sees: wrong advice scores like right, a refusal that is due scores low. "
        "A reward model rates help.",
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_balance(text, cue_phrases.HELPING, cue_phrases.UNHELPFUL) for text in texts_of(completions)]


@dataclass(frozen=True)
class Honesty:
    """The balance of words that admit a limit and of words that overclaim; ½ for neither."""

    __name__: ClassVar[str] = "honesty"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Hedging every sentence earns it; whether anything is true is not seen. See entailment."
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_balance(text, cue_phrases.CANDID, cue_phrases.OVERCLAIMING) for text in texts_of(completions)]


@dataclass(frozen=True)
class Safety:
    """1 / (1 + n), n the number of different threats, insults and instructions to harm: 1 for text without any."""

    __name__: ClassVar[str] = "safety"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Harm in words that are not listed is safe to it, and a warning that quotes them is not. "
        "toxicity and classifier use a model.",
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_absence(text, cue_phrases.UNSAFE) for text in texts_of(completions)]


@dataclass(frozen=True)
class FairWording:
    """1 / (1 + n), n the number of different sweeping phrases about groups of people: 1 for text without any."""

    __name__: ClassVar[str] = "fair_wording"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Bias in other words is not seen; text that quotes a prejudice to refute it scores low.",
    )

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_absence(text, cue_phrases.GENERALISING) for text in texts_of(completions)]


@dataclass(frozen=True)
class CausalReasoning:
    """The share of sentences that state a cause or consequence (because, therefore, leads to, …)."""

    __name__: ClassVar[str] = "causal_reasoning"
    metadata: ClassVar[Metadata] = Metadata(gaming="“Because” in every sentence earns 1, sound or not.")

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_share(text, _states_cause) for text in texts_of(completions)]


@dataclass(frozen=True)
class CounterfactualReasoning:
    """The share of sentences that say what would be otherwise (if … had …, would have, suppose, …)."""

    __name__: ClassVar[str] = "counterfactual_reasoning"
    metadata: ClassVar[Metadata] = Metadata(gaming="“What if” in every sentence earns 1, sound or not.")

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return [_share(text, _is_counterfactual) for text in texts_of(completions)]


def _balance(text: str, good: tuple[str, ...], bad: tuple[str, ...]) -> float:
    if not words_of(text):
        return 0.0
    for_it, against = cue_phrases.found(text, good), cue_phrases.found(text, bad)
    return (1 + for_it) / (2 + for_it + against)


def _absence(text: str, phrases: tuple[str, ...]) -> float:
    return 1 / (1 + cue_phrases.found(text, phrases)) if words_of(text) else 0.0


def _share(text: str, holds: Callable[[str], bool]) -> float:
    sentences = sentences_of(text)
    return sum(map(holds, sentences)) / len(sentences) if sentences else 0.0


def _states_cause(sentence: str) -> bool:
    return _CAUSE.search(sentence) is not None


def _is_counterfactual(sentence: str) -> bool:
    return any(_stand_in_order(patterns, sentence) for patterns in _COUNTERFACTUALS)


def _stand_in_order(patterns: Sequence[re.Pattern[str]], sentence: str) -> bool:
    """Whether the patterns match one after the other, in time that grows with the length alone."""
    position = 0
    for pattern in patterns:
        match = pattern.search(sentence, position)
        if match is None:
            return False
        position = match.end()
    return True
