"""Rewards for meaning: likeness of embeddings to reference texts, as a whole or word by word."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from nearstep.common.errors import ModelError
from nearstep.config.settings import option
from nearstep.rewards.builtin.classifiers import DEVICE, TOGETHER, WINDOW
from nearstep.rewards.builtin.columns import Cell, need_column, read_texts, where_given
from nearstep.rewards.builtin.metadata import Metadata, Values, fields_only, need_package, required, settle
from nearstep.rewards.builtin.text import texts_of

if TYPE_CHECKING:
    from nearstep.rewards.builtin.token_matching import TokenMatcher


@dataclass(frozen=True)
class SemanticSimilarity:
    """The cosine of the sentence embeddings of completion and reference, by sentence-transformers."""

    __name__: ClassVar[str] = "semantic_similarity"
    metadata: ClassVar[Metadata] = Metadata(
        low=-1,
        high=1,
        gaming="On the topic is enough: a contradiction is close to what it denies. Text beyond what the model reads "
        "does not count.",
        needs="parameter model, such as sentence-transformers/all-MiniLM-L6-v2; column reference",
        package="sentence_transformers",
        extra="embeddings",
    )
    model: str = required("folder or hub name of a sentence-transformers model")
    reference: str = option("reference", "column with the reference, or several")
    batch_size: int = option(32, "texts read together", at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def __getstate__(self) -> dict[str, object]:
        return fields_only(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column or the library is not there, a ModelError if the folder is not."""
        from nearstep.models.load import check_folder

        need_package(self)
        need_column(self, "reference", self.reference, columns)
        check_folder(self.model, "reward 'semantic_similarity'")

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it cannot be read."""
        self._encoder  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts, references = texts_of(completions), read_texts(self, self.reference, columns)
        different = sorted({*texts, *(text for cell in references for text in cell or ())})
        vectors = self._encoder.encode(
            different, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        by_text = dict(zip(different, vectors, strict=True))

        def cosine(text: str, reference: str) -> float:
            return max(-1.0, min(1.0, float(by_text[text] @ by_text[reference])))

        return best_of(texts, references, cosine)

    @cached_property
    def _encoder(self) -> Any:
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(self.model, device=None if self.device == "auto" else self.device)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"reward 'semantic_similarity': no sentence embedding model could be read from {self.model!r}: {error}"
            ) from error


@dataclass(frozen=True)
class Bertscore:
    """BERTScore F1: every token matched with the likest of the other text by its embedding (arXiv 1904.09675).

    Neither weighted by rarity nor rescaled; cosines below 0 count as 0. Long texts are read in windows.
    """

    __name__: ClassVar[str] = "bertscore"
    metadata: ClassVar[Metadata] = Metadata(
        gaming="Any fluent text earns most of it (0.8 and more with some models): only differences mean something.",
        needs="parameter model, such as roberta-large; column reference",
    )
    model: str = required("folder or hub name of an encoder (AutoModel)")
    reference: str = option("reference", "column with the reference, or several")
    layer: int | None = option(
        None, "layer whose output is compared, the last if not given; the paper took 17 of roberta-large", at_least=0
    )
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def __post_init__(self) -> None:
        settle(self)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there, a ModelError if the model or its layer is not."""
        need_column(self, "reference", self.reference, columns)
        self._matcher.check()

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it cannot be read or lacks weights."""
        self._matcher.model  # noqa: B018

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts, references = texts_of(completions), read_texts(self, self.reference, columns)
        different = sorted({*texts, *(text for cell in references for text in cell or ())})
        by_text = dict(zip(different, self._matcher.embed(different), strict=True))
        return best_of(texts, references, lambda text, reference: by_text[text].f1(by_text[reference]))

    @cached_property
    def _matcher(self) -> "TokenMatcher":
        from nearstep.rewards.builtin.token_matching import TokenMatcher

        return TokenMatcher(
            f"reward {self.__name__!r}", self.model, self.layer, self.window_tokens, self.batch_size, self.device
        )


def best_of(texts: Sequence[str], references: Sequence[Cell], likeness: Callable[[str, str], float]) -> Values:
    """The likeness to the likest reference; None for rows without any, 0 for an empty text."""

    def best(text: str, cell: list[str]) -> float:
        return max(likeness(text, reference) for reference in cell) if text.strip() else 0.0

    return where_given(texts, references, best)
