"""Rewards for likeness to reference texts, of several the likest: exact match, BLEU, chrF, ROUGE, METEOR."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from nearstep.common.errors import RewardError
from nearstep.config.settings import option
from nearstep.rewards.builtin.metadata import ColumnReward, Metadata, column_name
from nearstep.rewards.builtin.text import sentences_of, words_of

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

NEEDS = "column reference"
REFERENCE = "column with the reference, or several"


@dataclass(frozen=True)
class ExactMatch(ColumnReward):
    """1 if the completion is one of the references, else 0; case, punctuation and spacing do not matter."""

    __name__ = "exact_match"
    metadata = Metadata(gaming="None known but guessing where there are few answers.", needs=NEEDS)
    reference: str = column_name("reference", "column with the answer, or several")
    strict: bool = option(False, "compare letter by letter, only white space around the text left aside")

    def value(self, text: str, cell: list[str]) -> float:
        alike = str.strip if self.strict else _plain
        return float(alike(text) in map(alike, cell))


@dataclass(frozen=True)
class ContainsAnswer(ColumnReward):
    """1 if one of the references stands somewhere in the completion, word for word, else 0; case does not matter."""

    __name__ = "contains_answer"
    metadata = Metadata(gaming="Listing every possible answer earns 1.", needs=NEEDS)
    reference: str = column_name("reference", "column with the answer, or several")

    def value(self, text: str, cell: list[str]) -> float:
        return float(any(f" {_plain(answer)} " in f" {_plain(text)} " for answer in cell))


@dataclass(frozen=True)
class Bleu(ColumnReward):
    """Sentence BLEU of sacrebleu over 100: n-grams of one to four words, exponential smoothing, effective order."""

    __name__ = "bleu"
    metadata = Metadata(
        gaming="Copying stock phrases of the references earns some; right answers in other words, none.",
        needs=NEEDS,
        package="sacrebleu",
        extra="metrics",
    )
    reference: str = column_name("reference", REFERENCE)
    lowercase: bool = option(False, "ignore case")

    def value(self, text: str, cell: list[str]) -> float:
        return _of_1(self._metric, text, cell)

    @cached_property
    def _metric(self) -> "BLEU":
        from sacrebleu.metrics import BLEU

        return BLEU(effective_order=True, lowercase=self.lowercase)


@dataclass(frozen=True)
class Chrf(ColumnReward):
    """chrF of sacrebleu over 100: F2 of shared runs of up to six characters; better than BLEU for inflected words."""

    __name__ = "chrf"
    metadata = Metadata(
        gaming="Any text of the language earns some (about 0.1 to 0.2); long texts gain by recall.",
        needs=NEEDS,
        package="sacrebleu",
        extra="metrics",
    )
    reference: str = column_name("reference", REFERENCE)

    def value(self, text: str, cell: list[str]) -> float:
        return _of_1(self._metric, text, cell)

    @cached_property
    def _metric(self) -> "CHRF":
        from sacrebleu.metrics import CHRF

        return CHRF()


@dataclass(frozen=True)
class Rouge(ColumnReward):
    """ROUGE F1 of rouge-score: shared words (rouge1), pairs (rouge2), or the longest common subsequence (rougeL).

    rougeLsum takes the subsequence sentence by sentence. Only a to z and digits are words to it.
    """

    __name__ = "rouge"
    metadata = Metadata(
        gaming="Lists of likely words earn rouge1; order and grammar hardly matter to it.",
        needs=NEEDS,
        package="rouge_score",
        extra="metrics",
    )
    variant: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = option("rougeL", "rouge1, rouge2, rougeL, rougeLsum")
    reference: str = column_name("reference", REFERENCE)
    stem: bool = option(False, "cut words to their stems first (English)")

    def value(self, text: str, cell: list[str]) -> float:
        lines = self._lines(text)
        scores = [self._scorer.score(self._lines(each), lines)[self.variant].fmeasure for each in cell]
        return float(max(scores))

    def _lines(self, text: str) -> str:
        """For rougeLsum, one sentence per line, as the library expects them."""
        return "\n".join(sentences_of(text)) if self.variant == "rougeLsum" else text

    @cached_property
    def _scorer(self) -> "RougeScorer":
        from rouge_score.rouge_scorer import RougeScorer

        return RougeScorer([self.variant], use_stemmer=self.stem)


class _NoSynonyms:
    """Stands for WordNet where synonyms are not asked for."""

    def synsets(self, word: str) -> list[object]:
        """No word has a synonym."""
        return []


@dataclass(frozen=True)
class Meteor(ColumnReward):
    """METEOR of nltk: recall-weighted matches of words, stems and synonyms, less where they are scattered.

    Synonyms are those of WordNet, which nltk downloads apart and looks up by stems; without them it is METEOR of words
    and stems. A word that the reference repeats is matched with its last place, so that fragmentation can be overrated.
    """

    __name__ = "meteor"
    metadata = Metadata(
        gaming="Recall weighs nine times precision: padding with likely words gains.",
        needs=NEEDS,
        package="nltk",
        extra="metrics",
    )
    reference: str = column_name("reference", REFERENCE)
    synonyms: bool = option(True, "match synonyms, from nltk's WordNet data; false does without the data")

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column, nltk or the WordNet data is not there."""
        super().check_columns(columns)
        self._wordnet()

    def value(self, text: str, cell: list[str]) -> float:
        from nltk.tokenize import wordpunct_tokenize
        from nltk.translate.meteor_score import meteor_score

        references = [wordpunct_tokenize(reference) for reference in cell]
        return float(meteor_score(references, wordpunct_tokenize(text), wordnet=self._wordnet()))

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


def _of_1(metric: "BLEU | CHRF", text: str, references: list[str]) -> float:
    """A score of sacrebleu over 100; rounding may take it above 1."""
    return float(min(1.0, metric.sentence_score(text, references).score / 100))


def _plain(text: str) -> str:
    return " ".join(words_of(text))
