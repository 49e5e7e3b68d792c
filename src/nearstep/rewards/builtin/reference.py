"""Rewards for likeness to reference texts, of several the likest: exact match, BLEU, chrF, ROUGE, METEOR."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from nearstep.common.errors import RewardError
from nearstep.config.settings import option
from nearstep.rewards.builtin.columns import Cell, need_column, read_texts, where_given
from nearstep.rewards.builtin.metadata import Metadata, Values, need_package, settle
from nearstep.rewards.builtin.text import sentences_of, texts_of, words_of

if TYPE_CHECKING:
    from sacrebleu.metrics import BLEU, CHRF

NEEDS = "column reference"


@dataclass(frozen=True)
class ExactMatch:
    """1 if the completion is one of the references, else 0; case, punctuation and spacing do not matter."""

    __name__: ClassVar[str] = "exact_match"
    metadata: ClassVar[Metadata] = Metadata(gaming="None known but guessing where there are few answers.", needs=NEEDS)
    reference: str = option("reference", "column with the answer, or several")
    strict: bool = option(False, "compare letter by letter, only white space around the text left aside")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there."""
        need_column(self, "reference", self.reference, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        cells = read_texts(self, self.reference, columns)
        return where_given(texts_of(completions), cells, self._is_one_of)

    def _is_one_of(self, text: str, answers: list[str]) -> float:
        alike = str.strip if self.strict else _plain
        return float(alike(text) in map(alike, answers))


@dataclass(frozen=True)
class ContainsAnswer:
    """1 if one of the references stands somewhere in the completion, word for word, else 0; case does not matter."""

    __name__: ClassVar[str] = "contains_answer"
    metadata: ClassVar[Metadata] = Metadata(gaming="Listing every possible answer earns 1.", needs=NEEDS)
    reference: str = option("reference", "column with the answer, or several")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there."""
        need_column(self, "reference", self.reference, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        cells = read_texts(self, self.reference, columns)
        return where_given(texts_of(completions), cells, _contains)


@dataclass(frozen=True)
class Bleu:
    """Sentence BLEU of sacrebleu over 100: n-grams of one to four words, exponential smoothing, effective order."""

    __name__: ClassVar[str] = "bleu"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Copying stock phrases of the references earns some; right answers in other words, none.",
        needs=NEEDS,
        package="sacrebleu",
        extra="metrics",
    )
    reference: str = option("reference", "column with the reference, or several")
    lowercase: bool = option(False, "ignore case")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column or sacrebleu is not there."""
        need_package(self)
        need_column(self, "reference", self.reference, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        need_package(self)
        from sacrebleu.metrics import BLEU

        metric = BLEU(effective_order=True, lowercase=self.lowercase)
        return _sacrebleu_scores(metric, texts_of(completions), read_texts(self, self.reference, columns))


@dataclass(frozen=True)
class Chrf:
    """chrF of sacrebleu over 100: F2 of shared runs of up to six characters; better than BLEU for inflected words."""

    __name__: ClassVar[str] = "chrf"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Any text of the language earns some (about 0.1 to 0.2); long texts gain by recall.",
        needs=NEEDS,
        package="sacrebleu",
        extra="metrics",
    )
    reference: str = option("reference", "column with the reference, or several")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column or sacrebleu is not there."""
        need_package(self)
        need_column(self, "reference", self.reference, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        need_package(self)
        from sacrebleu.metrics import CHRF

        metric = CHRF()
        return _sacrebleu_scores(metric, texts_of(completions), read_texts(self, self.reference, columns))


@dataclass(frozen=True)
class Rouge:
    """ROUGE F1 of rouge-score: shared words (rouge1), pairs (rouge2), or the longest common subsequence (rougeL).

    rougeLsum takes the subsequence sentence by sentence. Only a to z and digits are words to it.
    """

    __name__: ClassVar[str] = "rouge"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Lists of likely words earn rouge1; order and grammar hardly matter to it.",
        needs=NEEDS,
        package="rouge_score",
        extra="metrics",
    )
    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = option("rougeL", "rouge1, rouge2, rougeL, rougeLsum")
    reference: str = option("reference", "column with the reference, or several")
    stem: bool = option(False, "cut words to their stems first (English)")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column or rouge-score is not there."""
        need_package(self)
        need_column(self, "reference", self.reference, columns)

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        need_package(self)
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.variant], use_stemmer=self.stem)
        cells = read_texts(self, self.reference, columns)

        def best(text: str, references: list[str]) -> float:
            lines = self._lines(text)
            return float(max(scorer.score(self._lines(each), lines)[self.variant].fmeasure for each in references))

        return where_given(texts_of(completions), cells, best)

    def _lines(self, text: str) -> str:
        """For rougeLsum, one sentence per line, as the library expects them."""
        return "\n".join(sentences_of(text)) if self.variant == "rougeLsum" else text


def _sacrebleu_scores(metric: "BLEU | CHRF", texts: Sequence[str], cells: Sequence[Cell]) -> Values:
    """Its scores over 100; rounding may take them above 1."""
    return where_given(texts, cells, lambda text, given: min(1.0, metric.sentence_score(text, given).score / 100))


class _NoSynonyms:
    """Stands for WordNet where synonyms are not asked for."""

    def synsets(self, word: str) -> list[object]:
        """No word has a synonym."""
        return []


@dataclass(frozen=True)
class Meteor:
    """METEOR of nltk: recall-weighted matches of words, stems and synonyms, less where they are scattered.

    Synonyms are those of WordNet, which nltk downloads apart and looks up by stems; without them it is METEOR of words
    and stems. A word that the reference repeats is matched with its last place, so that fragmentation can be overrated.
    """

    __name__: ClassVar[str] = "meteor"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Recall weighs nine times precision: padding with likely words gains.",
        needs=NEEDS,
        package="nltk",
        extra="metrics",
    )
    reference: str = option("reference", "column with the reference, or several")
    synonyms: bool = option(True, "match synonyms, from nltk's WordNet data; false does without the data")

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column, nltk or the WordNet data is not there."""
        need_package(self)
        need_column(self, "reference", self.reference, columns)
        self._wordnet()

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        need_package(self)
        from nltk.tokenize import wordpunct_tokenize
        from nltk.translate.meteor_score import meteor_score

        wordnet = self._wordnet()
        cells = read_texts(self, self.reference, columns)
        split = wordpunct_tokenize
        return where_given(
            texts_of(completions),
            cells,
            lambda text, references: float(meteor_score([*map(split, references)], split(text), wordnet=wordnet)),
        )

    def _wordnet(self) -> object:
        if not self.synonyms:
            return _NoSynonyms()
        from nltk.corpus import wordnet

        try:
            wordnet.ensure_loaded()
        except LookupError as error:
            raise RewardError(
                "meteor needs nltk's WordNet data for synonyms: python -m nltk.downloader wordnet, "
                "or go without synonyms: meteor:synonyms=false."
            ) from error
        return wordnet


def _plain(text: str) -> str:
    return " ".join(words_of(text))


def _contains(text: str, answers: list[str]) -> float:
    return float(any(f" {_plain(answer)} " in f" {_plain(text)} " for answer in answers))
