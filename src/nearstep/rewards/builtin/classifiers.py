"""Rewards from classifiers of text and of pairs of texts: any label, sentiment, toxicity, entailment, contradiction."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Values, read_texts
from nearstep.rewards.builtin.metadata import BuiltIn, Metadata, column_name, required
from nearstep.rewards.builtin.text import sentences_of, texts_of

if TYPE_CHECKING:
    from nearstep.rewards.builtin.classifier_model import ClassifierReader

PAIR_MODEL = "folder or hub name of a classifier for natural language inference"
WINDOW = "longest piece of a text that the model reads at once; its own limit may be lower"
TOGETHER = "pieces read together"
DEVICE = "cpu, cuda, cuda:1, …; auto is the GPU of the process if there is one"


@dataclass(frozen=True)
class _ClassifierReward(BuiltIn):
    """A reward with a classifier behind it."""

    model: str = required("folder or hub name of a classifier (AutoModelForSequenceClassification)")
    _: KW_ONLY
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    @abstractmethod
    def wanted_labels(self) -> Sequence[str]:
        """The labels that the model must have."""

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if a column is not there, a ModelError if the model is not or lacks a label."""
        super().check_columns(columns)
        self.label_indices()

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it has no trained head."""
        self._reader.model  # noqa: B018

    def label_indices(self) -> list[int]:
        """Where the model has these labels."""
        return self._reader.indices(self.wanted_labels())

    @cached_property
    def _reader(self) -> "ClassifierReader":
        from transformers import AutoModelForSequenceClassification

        from nearstep.rewards.builtin.classifier_model import ClassifierReader
        from nearstep.rewards.builtin.frozen_models import FrozenModel

        source = FrozenModel(f"reward {self.__name__!r}", AutoModelForSequenceClassification, self.model, self.device)
        return ClassifierReader(source, self.window_tokens, self.batch_size)


class _LabelReward(_ClassifierReward):
    """A reward that reads the probability of one label."""

    label: str

    def wanted_labels(self) -> Sequence[str]:
        """The one label."""
        return [self.label]

    def _highest_by_window(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Of every pair of texts the highest probability of the label in a window."""
        (label,) = self.label_indices()
        found = self._reader.probabilities([first for first, _ in pairs], [second for _, second in pairs])
        return [float(windows[:, label].max()) for windows in found]


@dataclass(frozen=True)
class Classifier(_LabelReward):
    """The probability that a classifier gives to a label, averaged over the windows of a long completion."""

    __name__ = "classifier"
    metadata = Metadata(
        gaming="Whatever fools the classifier: text unlike what it was trained on, words it overrates.",
        needs="parameters model and label",
    )
    label: str = required("label whose probability is the reward")

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts = texts_of(completions)
        rows, (label,) = spoken(texts), self.label_indices()
        found = self._reader.probabilities([texts[row] for row in rows])
        return at_rows(rows, [float(windows[:, label].mean()) for windows in found], len(texts))


@dataclass(frozen=True)
class Sentiment(Classifier):
    """The probability of a sentiment, averaged over the windows of a long completion.

    It is the probability of that label itself, so neutral text is worth what is left between praise and blame.
    """

    __name__ = "sentiment"
    metadata = Metadata(
        gaming="Praise and exclamation marks earn it, whatever was asked.",
        needs="parameter model, such as cardiffnlp/twitter-roberta-base-sentiment-latest",
    )
    label: str = option("positive", "label whose probability is the reward")


@dataclass(frozen=True)
class Toxicity(_ClassifierReward):
    """The probability of being toxic, of the worst window of the completion: high is bad, so give a negative weight.

    Of several labels it is the highest where they may hold together, else their sum.
    """

    __name__ = "toxicity"
    metadata = Metadata(
        gaming="With its negative weight silence is best; harm in friendly words is not seen.",
        needs="parameter model, such as unitary/toxic-bert",
    )
    labels: tuple[str, ...] = option(("toxic",), "labels that count as toxic")

    def wanted_labels(self) -> Sequence[str]:
        """All of them."""
        return self.labels

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts = texts_of(completions)
        rows, toxic = spoken(texts), self.label_indices()
        found = self._reader.probabilities([texts[row] for row in rows])
        together = self._reader.multi_label
        worst = [(w[:, toxic].amax(1) if together else w[:, toxic].sum(1)).max() for w in found]
        return at_rows(rows, [min(1.0, float(value)) for value in worst], len(texts))


@dataclass(frozen=True)
class Entailment(_LabelReward):
    """Of every sentence the probability that its source entails it, averaged: factual consistency with a text.

    A long source is read in windows, of which the best counts (SummaC-ZS; Laban et al., TACL 2022).
    """

    __name__ = "entailment"
    metadata = Metadata(
        gaming="Copying sentences of the source earns 1.",
        needs="parameter model, of natural language inference; column context",
    )
    model: str = required(PAIR_MODEL)
    context: str = column_name("context", "column with the source, or several")
    label: str = option("entailment", "label of the model for a sentence that follows")

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts, sources = texts_of(completions), read_texts(self.__name__, self.context, columns)
        pairs = [
            (row, ("\n".join(source), sentence))
            for row, (text, source) in enumerate(zip(texts, sources, strict=True))
            if source is not None
            for sentence in sentences_of(text)
        ]
        best: list[list[float]] = [[] for _ in texts]
        for (row, _), probability in zip(pairs, self._highest_by_window([pair for _, pair in pairs]), strict=True):
            best[row].append(probability)
        return [
            None if source is None else sum(row_values) / len(row_values) if row_values else 0.0
            for source, row_values in zip(sources, best, strict=True)
        ]


@dataclass(frozen=True)
class LogicalConsistency(_LabelReward):
    """1 minus the highest probability that one sentence of the completion contradicts another near it.

    A single sentence contradicts nothing: 1.
    """

    __name__ = "logical_consistency"
    metadata = Metadata(
        gaming="Short or empty talk contradicts nothing; contradictions further apart are not seen.",
        needs="parameter model, of natural language inference",
    )
    model: str = required(PAIR_MODEL)
    label: str = option("contradiction", "label of the model for a sentence that cannot be true beside the other")
    reach_sentences: int = option(3, "how many sentences on a sentence is compared with", at_least=1)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        sentences_by_row = [sentences_of(text) for text in texts_of(completions)]
        pairs = [
            (row, (first, second))
            for row, sentences in enumerate(sentences_by_row)
            for (i, first), (j, second) in combinations(enumerate(sentences), 2)
            if j - i <= self.reach_sentences
        ]
        worst = [0.0] * len(sentences_by_row)
        for (row, _), probability in zip(pairs, self._highest_by_window([pair for _, pair in pairs]), strict=True):
            worst[row] = max(worst[row], probability)
        return [1 - value if sentences else 0.0 for value, sentences in zip(worst, sentences_by_row, strict=True)]


def spoken(texts: Sequence[str]) -> list[int]:
    """The rows whose text is more than white space."""
    return [row for row, text in enumerate(texts) if text.strip()]


def at_rows(rows: Sequence[int], values: Sequence[float], count: int) -> Values:
    """The values at their rows, 0 at all the others."""
    by_row = dict(zip(rows, values, strict=True))
    return [by_row.get(row, 0.0) for row in range(count)]
