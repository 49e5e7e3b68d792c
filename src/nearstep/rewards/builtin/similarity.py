"""Rewards for meaning: likeness of embeddings to reference texts, as a whole or word by word."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nearstep.common.errors import ModelError
from nearstep.config.settings import option
from nearstep.rewards.builtin.classifiers import DEVICE, TOGETHER, WINDOW
from nearstep.rewards.builtin.columns import Values, read_texts, where_given
from nearstep.rewards.builtin.metadata import BuiltIn, Metadata, column_name, required
from nearstep.rewards.builtin.text import texts_of

if TYPE_CHECKING:
    from nearstep.rewards.builtin.token_matching import TokenMatcher


class _LikenessReward(BuiltIn):
    """The likeness to the likest reference; None for rows without any, 0 for an empty text."""

    reference: str

    @abstractmethod
    def likeness_of(self, texts: Sequence[str]) -> Callable[[str, str], float]:
        """How alike two of these texts are, each of them read once."""

    def __call__(self, completions: Sequence[object], **columns: object) -> Values:
        texts, references = texts_of(completions), read_texts(self.__name__, self.reference, columns)
        likeness = self.likeness_of(sorted({*texts, *(text for cell in references for text in cell or ())}))

        def best(text: str, cell: list[str]) -> float:
            return max(likeness(text, reference) for reference in cell) if text.strip() else 0.0

        return where_given(texts, references, best)


@dataclass(frozen=True)
class SemanticSimilarity(_LikenessReward):
    """The cosine of the sentence embeddings of completion and reference, by sentence-transformers."""

    __name__ = "semantic_similarity"
    metadata = Metadata(
        low=-1,
        high=1,
        gaming="On the topic is enough: a contradiction is close to what it denies. Text beyond what the model reads "
        "does not count.",
        needs="parameter model, such as sentence-transformers/all-MiniLM-L6-v2; column reference",
        package="sentence_transformers",
        extra="embeddings",
    )
    model: str = required("folder or hub name of a sentence-transformers model")
    reference: str = column_name("reference", "column with the reference, or several")
    batch_size: int = option(32, "texts read together", at_least=1)
    device: str = option("auto", DEVICE)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column or the library is not there, a ModelError if the folder is not."""
        from nearstep.models.load import check_folder

        super().check_columns(columns)
        check_folder(self.model, "reward 'semantic_similarity'")

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it cannot be read."""
        self._encoder  # noqa: B018

    def likeness_of(self, texts: Sequence[str]) -> Callable[[str, str], float]:
        """Their cosine."""
        vectors = self._encoder.encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, show_progress_bar=False
        )
        by_text = dict(zip(texts, vectors, strict=True))
        return lambda text, reference: max(-1.0, min(1.0, float(by_text[text] @ by_text[reference])))

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
class Bertscore(_LikenessReward):
    """BERTScore F1: every token matched with the likest of the other text by its embedding (arXiv 1904.09675).

    Neither weighted by rarity nor rescaled; cosines below 0 count as 0. Long texts are read in windows.
    """

    __name__ = "bertscore"
    metadata = Metadata(
        gaming="Any fluent text earns most of it (0.8 and more with some models): only differences mean something.",
        needs="parameter model, such as roberta-large; column reference",
    )
    model: str = required("folder or hub name of an encoder (AutoModel)")
    reference: str = column_name("reference", "column with the reference, or several")
    layer: int | None = option(
        None, "layer whose output is compared, the last if not given; the paper took 17 of roberta-large", at_least=0
    )
    window_tokens: int = option(512, WINDOW, at_least=16)
    batch_size: int = option(32, TOGETHER, at_least=1)
    device: str = option("auto", DEVICE)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a RewardError if the column is not there, a ModelError if the model or its layer is not."""
        super().check_columns(columns)
        self._matcher.check()

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it cannot be read or lacks weights."""
        self._matcher.source.model  # noqa: B018

    def likeness_of(self, texts: Sequence[str]) -> Callable[[str, str], float]:
        """The F1 of their tokens."""
        by_text = dict(zip(texts, self._matcher.embed(texts), strict=True))
        return lambda text, reference: by_text[text].f1(by_text[reference])

    @cached_property
    def _matcher(self) -> "TokenMatcher":
        from transformers import AutoModel

        from nearstep.rewards.builtin.frozen_models import FrozenModel
        from nearstep.rewards.builtin.token_matching import TokenMatcher

        source = FrozenModel(f"reward {self.__name__!r}", AutoModel, self.model, self.device)
        return TokenMatcher(source, self.layer, self.window_tokens, self.batch_size)
