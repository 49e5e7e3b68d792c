"""Rewards from classifiers of text and of pairs of texts: any label, sentiment, toxicity, entailment, contradiction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import need_column, read_texts
from nearstep.rewards.builtin.metadata import Metadata, Values, required, settle
from nearstep.rewards.builtin.text import sentences_of, texts_of

if TYPE_CHECKING:
    from nearstep.rewards.builtin.classifier_model import ClassifierReader

MODEL = "folder or hub name of a classifier (AutoModelForSequenceClassification)"
PAIR_MODEL = "folder or hub name of a classifier for natural language inference"
WINDOW = "longest piece of a text that the model reads at once; its own limit may be lower"
TOGETHER = "pieces read together"
DEVICE = "cpu, cuda, cuda:1, …; auto is the GPU of the process if there is one"


@runtime_checkable
class _Reads(Protocol):
    """A reward with a classifier behind it."""

    __name__: ClassVar[str]

    @property
    def model(self) -> str: ...
    @property
    def window_tokens(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def device(self) -> str: ...


@dataclass(frozen=True)
class Classifier:
    """The probability that a classifier gives to a label, averaged over the windows of a long completion."""

    __name__: ClassVar[str] = "classifier"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Whatever fools the classifier: text unlike what it was trained on, words it overrates.",
        needs="parameters model and label",
    )
    model: str = required(MODEL)
    label: str = required("label whose probability is the reward")
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a ModelError if there is no such model, or it has no such label."""
        self._reader.indices([self.label])

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it has no trained head."""
        self._reader.model  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return _mean_probability(self._reader, self.label, texts_of(completions))

    @cached_property
    def _reader(self) -> "ClassifierReader":
        return _reader(self)


@dataclass(frozen=True)
class Sentiment:
    """The probability of a sentiment, averaged over the windows of a long completion.

    It is the probability of that label itself, so neutral text is worth what is left between praise and blame.
    """

    __name__: ClassVar[str] = "sentiment"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Praise and exclamation marks earn it, whatever was asked.",
        needs="parameter model, such as cardiffnlp/twitter-roberta-base-sentiment-latest",
    )
    model: str = required(MODEL)
    label: str = option("positive", "label whose probability is the reward")
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a ModelError if there is no such model, or it has no such label."""
        self._reader.indices([self.label])

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it has no trained head."""
        self._reader.model  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        return _mean_probability(self._reader, self.label, texts_of(completions))

    @cached_property
    def _reader(self) -> "ClassifierReader":
        return _reader(self)


@dataclass(frozen=True)
class Toxicity:
    """The probability of being toxic, of the worst window of the completion: high is bad, so give a negative weight.

    Of several labels it is the highest where they may hold together, else their sum.
    """

    __name__: ClassVar[str] = "toxicity"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="With its negative weight silence is best; harm in friendly words is not seen.",
        needs="parameter model, such as unitary/toxic-bert",
    )
    model: str = required(MODEL)
    labels: tuple[str, ...] = option(("toxic",), "labels that count as toxic")
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a ModelError if there is no such model, or it has not one of the labels."""
        self._reader.indices(self.labels)

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it has no trained head."""
        self._reader.model  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts = texts_of(completions)
        rows, toxic = spoken(texts), self._reader.indices(self.labels)
        found = self._reader.probabilities([texts[row] for row in rows])
        together = self._reader.multi_label
        worst = [(w[:, toxic].amax(1) if together else w[:, toxic].sum(1)).max() for w in found]
        return at_rows(rows, [min(1.0, float(value)) for value in worst], len(texts))

    @cached_property
    def _reader(self) -> "ClassifierReader":
        return _reader(self)


@dataclass(frozen=True)
class Entailment:
    """Of every sentence the probability that its source entails it, averaged: factual consistency with a text.

    A long source is read in windows, of which the best counts (SummaC-ZS; Laban et al., TACL 2022).
    """

    __name__: ClassVar[str] = "entailment"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Copying sentences of the source earns 1.",
        needs="parameter model, of natural language inference; column context",
    )
    model: str = required(PAIR_MODEL)
    context: str = option("context", "column with the source, or several")
    label: str = option("entailment", "label of the model for a sentence that follows")
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there, a ModelError if the model or label is not."""
        need_column(self, "context", self.context, columns)
        self._reader.indices([self.label])

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it has no trained head."""
        self._reader.model  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts, sources = texts_of(completions), read_texts(self, self.context, columns)
        pairs = [
            (row, "\n".join(source), sentence)
            for row, (text, source) in enumerate(zip(texts, sources, strict=True))
            if source is not None
            for sentence in sentences_of(text)
        ]
        (label,) = self._reader.indices([self.label])
        found = self._reader.probabilities([source for _, source, _ in pairs], [sentence for *_, sentence in pairs])
        best: list[list[float]] = [[] for _ in texts]
        for (row, _, _), windows in zip(pairs, found, strict=True):
            best[row].append(float(windows[:, label].max()))
        return [
            None if source is None else sum(row_values) / len(row_values) if row_values else 0.0
            for source, row_values in zip(sources, best, strict=True)
        ]

    @cached_property
    def _reader(self) -> "ClassifierReader":
        return _reader(self)


@dataclass(frozen=True)
class LogicalConsistency:
    """1 minus the highest probability that one sentence of the completion contradicts another near it.

    A single sentence contradicts nothing: 1.
    """

    __name__: ClassVar[str] = "logical_consistency"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Short or empty talk contradicts nothing; contradictions further apart are not seen.",
        needs="parameter model, of natural language inference",
    )
    model: str = required(PAIR_MODEL)
    label: str = option("contradiction", "label of the model for a sentence that cannot be true beside the other")
    reach_sentences: int = option(3, "how many sentences on a sentence is compared with", at_least=1)
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a ModelError if there is no such model, or it has no such label."""
        self._reader.indices([self.label])

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it has no trained head."""
        self._reader.model  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        sentences_by_row = [sentences_of(text) for text in texts_of(completions)]
        pairs = [
            (row, first, second)
            for row, sentences in enumerate(sentences_by_row)
            for (i, first), (j, second) in combinations(enumerate(sentences), 2)
            if j - i <= self.reach_sentences
        ]
        (label,) = self._reader.indices([self.label])
        found = self._reader.probabilities([first for _, first, _ in pairs], [second for *_, second in pairs])
        worst = [0.0] * len(sentences_by_row)
        for (row, _, _), windows in zip(pairs, found, strict=True):
            worst[row] = max(worst[row], float(windows[:, label].max()))
        return [1 - value if sentences else 0.0 for value, sentences in zip(worst, sentences_by_row, strict=True)]

    @cached_property
    def _reader(self) -> "ClassifierReader":
        return _reader(self)


def _reader(reward: _Reads) -> "ClassifierReader":
    from nearstep.rewards.builtin.classifier_model import ClassifierReader

    return ClassifierReader(
        f"reward {reward.__name__!r}", reward.model, reward.window_tokens, reward.batch_size, reward.device
    )


def _mean_probability(reader: "ClassifierReader", label: str, texts: Sequence[str]) -> Values:
    rows, (index,) = spoken(texts), reader.indices([label])
    found = reader.probabilities([texts[row] for row in rows])
    return at_rows(rows, [float(windows[:, index].mean()) for windows in found], len(texts))


def spoken(texts: Sequence[str]) -> list[int]:
    """The rows whose text is more than white space."""
    return [row for row, text in enumerate(texts) if text.strip()]


def at_rows(rows: Sequence[int], values: Sequence[float], count: int) -> Values:
    """The values at their rows, 0 at all the others."""
    by_row = dict(zip(rows, values, strict=True))
    return [by_row.get(row, 0.0) for row in range(count)]
