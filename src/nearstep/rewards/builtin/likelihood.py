"""A reward for how likely a language model finds a completion."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from nearstep.config.settings import option
from nearstep.rewards.builtin.classifiers import DEVICE, at_rows, spoken
from nearstep.rewards.builtin.columns import Values
from nearstep.rewards.builtin.metadata import BuiltIn, Metadata, required
from nearstep.rewards.builtin.text import texts_of

if TYPE_CHECKING:
    from nearstep.rewards.builtin.language_model import LanguageModel


@dataclass(frozen=True)
class Likelihood(BuiltIn):
    """1 / perplexity: the geometric mean of the probabilities of its tokens, after the prompt, by a language model."""

    __name__ = "likelihood"
    metadata = Metadata(
        gaming="Loops and stock phrases are the likeliest text: add repetition_penalty.",
        needs="parameter model",
    )
    model: str = required("folder or hub name of a causal language model")
    batch_tokens: int = option(16384, "most tokens read together", at_least=1)
    device: str = option("auto", DEVICE)

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise a ModelError if there is no such model."""
        self._reader.source.config  # noqa: B018

    def prepare(self) -> None:
        """Load the model. Raises a ModelError if it cannot be read or lacks weights."""
        self._reader.policy  # noqa: B018

    def __call__(self, completions: Sequence[object], prompts: Sequence[object], **columns: object) -> Values:
        texts = texts_of(completions)
        rows = spoken(texts)
        logprobs = self._reader.mean_logprobs([prompts[row] for row in rows], [texts[row] for row in rows])
        return at_rows(rows, [math.exp(value) for value in logprobs], len(texts))

    @cached_property
    def _reader(self) -> "LanguageModel":
        from transformers import AutoModelForCausalLM

        from nearstep.rewards.builtin.frozen_models import FrozenModel
        from nearstep.rewards.builtin.language_model import LanguageModel

        source = FrozenModel(f"reward {self.__name__!r}", AutoModelForCausalLM, self.model, self.device)
        return LanguageModel(source, self.batch_tokens)
