"""Rewards for English words and phrases that go with a manner of speaking; what they cannot see is said of each.

The balance of two lists of cues is (1 + good) / (2 + good + bad), Laplace's estimate of the share of good ones: text
without any is worth ½, each cue counts once however often it stands there, and no number of them reaches 0 or 1.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nearstep.rewards.builtin.metadata import Metadata, TextReward
from nearstep.rewards.builtin.text import ENGLISH, sentences_of, share, words_of

_GENERALISING = (
    *ENGLISH["generalising"],
    *(f"{before} {group}" for before in ENGLISH["before_a_group"] for group in ENGLISH["groups"]),
    *(f"{group} {behind}" for group in ENGLISH["groups"] for behind in ENGLISH["behind_a_group"]),
)
_CAUSE = re.compile(
    r"\b(?:because|since|therefore|thus|hence|consequently|as a result|so that|due to|owing to|thanks to|leads? to"
    r"|led to|caus(?:es?|ed|ing)|results? in|resulted in|results? from|that is why|which is why|for this reason"
    r"|in turn)\b",
    re.IGNORECASE,
)
_LONG_FORMS = {
    "can't": "cannot",
    "won't": "will not",
    "let's": "let us",
    "n't": " not",
    "'m": " am",
    "'re": " are",
    "'ll": " will",
    "'ve": " have",
    "'d": " would",
}
_IT_IS = re.compile(r"\b(it|that|here|there|what|who)'s\b")


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
class Politeness(TextReward):
    """The balance of polite and rude words; ½ for text with neither."""

    __name__ = "politeness"
    metadata = Metadata(gaming="“Please, thank you, my pleasure” before any text; sarcasm and quotations are not seen.")

    def value(self, text: str) -> float:
        return _balance(text, ENGLISH["polite"], ENGLISH["rude"])


@dataclass(frozen=True)
class Helpfulness(TextReward):
    """The balance of words of helping (steps, examples, advice, reasons) and of evading or refusing; ½ for neither."""

    __name__ = "helpfulness"
    metadata = Metadata(
        gaming="The manner of help is all it sees: wrong advice scores like right, a refusal that is due scores low. "
        "A reward model rates help.",
    )

    def value(self, text: str) -> float:
        return _balance(text, ENGLISH["helping"], ENGLISH["unhelpful"])


@dataclass(frozen=True)
class Honesty(TextReward):
    """The balance of words that admit a limit and of words that overclaim; ½ for neither."""

    __name__ = "honesty"
    metadata = Metadata(gaming="Hedging every sentence earns it; whether anything is true is not seen. See entailment.")

    def value(self, text: str) -> float:
        return _balance(text, ENGLISH["candid"], ENGLISH["overclaiming"])


@dataclass(frozen=True)
class Safety(TextReward):
    """1 / (1 + n), n the number of different threats, insults and instructions to harm: 1 for text without any."""

    __name__ = "safety"
    metadata = Metadata(
        gaming="Harm in words that are not listed is safe to it, and a warning that quotes them is not. "
        "toxicity and classifier use a model.",
    )

    def value(self, text: str) -> float:
        return _absence(text, ENGLISH["unsafe"])


@dataclass(frozen=True)
class FairWording(TextReward):
    """1 / (1 + n), n the number of different sweeping phrases about groups of people: 1 for text without any."""

    __name__ = "fair_wording"
    metadata = Metadata(
        gaming="Bias in other words is not seen; text that quotes a prejudice to refute it scores low.",
    )

    def value(self, text: str) -> float:
        return _absence(text, _GENERALISING)


@dataclass(frozen=True)
class CausalReasoning(TextReward):
    """The share of sentences that state a cause or consequence (because, therefore, leads to, …)."""

    __name__ = "causal_reasoning"
    metadata = Metadata(gaming="“Because” in every sentence earns 1, sound or not.")

    def value(self, text: str) -> float:
        return share(_CAUSE.search(sentence) is not None for sentence in sentences_of(text))


@dataclass(frozen=True)
class CounterfactualReasoning(TextReward):
    """The share of sentences that say what would be otherwise (if … had …, would have, suppose, …)."""

    __name__ = "counterfactual_reasoning"
    metadata = Metadata(gaming="“What if” in every sentence earns 1, sound or not.")

    def value(self, text: str) -> float:
        return share(
            any(_stand_in_order(patterns, sentence) for patterns in _COUNTERFACTUALS) for sentence in sentences_of(text)
        )


def _balance(text: str, good: Iterable[str], bad: Iterable[str]) -> float:
    if not words_of(text):
        return 0.0
    for_it, against = _found(text, good), _found(text, bad)
    return (1 + for_it) / (2 + for_it + against)


def _absence(text: str, phrases: Iterable[str]) -> float:
    return 1 / (1 + _found(text, phrases)) if words_of(text) else 0.0


def _found(text: str, phrases: Iterable[str]) -> int:
    """How many of the phrases stand in a text, each counted once; contractions are read as their long forms."""
    plain = text.lower().replace("’", "'").replace("%", " percent")
    for short, long in _LONG_FORMS.items():
        plain = plain.replace(short, long)
    plain = " ".join(["", *words_of(_IT_IS.sub(r"\1 is", plain)), ""])
    return sum(f" {phrase} " in plain for phrase in phrases)


def _stand_in_order(patterns: Sequence[re.Pattern[str]], sentence: str) -> bool:
    """Whether the patterns match one after the other, in time that grows with the length alone."""
    position = 0
    for pattern in patterns:
        match = pattern.search(sentence, position)
        if match is None:
            return False
        position = match.end()
    return True
