"""What a text classifier says of texts and pairs of texts, every window of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from nearstep.common.errors import ModelError
from nearstep.rewards.builtin.frozen_models import FrozenModel


@dataclass(frozen=True)
class ClassifierReader:
    """A classifier of transformers, loaded when it first reads."""

    source: FrozenModel
    window_tokens: int
    batch_size: int

    def indices(self, labels: Sequence[str]) -> list[int]:
        """Where the model has these labels, in any case of letters, read without weights.

        Raises ModelError if there is no such model, or it has not one of the labels.
        """
        config = self.source.config
        names: list[str] = [config.id2label[index] for index in range(config.num_labels)]
        known = [name.casefold() for name in names]
        absent = [label for label in labels if label.casefold() not in known]
        if absent:
            raise ModelError(
                f"{self.source.role}: the model {self.source.name!r} has no label {absent[0]!r}. "
                f"Its labels: {', '.join(names)}."
            )
        return [known.index(label.casefold()) for label in labels]

    @torch.no_grad()
    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[Float[Tensor, "windows labels"]]:
        """Of every text, or pair of texts, and each window of it the probability of every label.

        Labels that exclude one another share a softmax; where the configuration says that several may hold at once
        (problem_type), or there is but one, each has a sigmoid. Raises ModelError if the model has no trained head.
        """
        if not texts:
            return []
        found: list[list[Tensor]] = [[] for _ in texts]
        for together, inputs in self.source.windows(texts, pairs, self.window_tokens, self.batch_size):
            logits = self.model(**inputs).logits.float()
            probabilities = logits.sigmoid() if self.multi_label else logits.softmax(-1)
            for window, window_probabilities in zip(together, probabilities.cpu(), strict=True):
                found[window.row].append(window_probabilities)
        return [torch.stack(windows) for windows in found]

    @property
    def multi_label(self) -> bool:
        """Whether several labels may hold of a text at once."""
        config = self.source.config
        return bool(config.problem_type == "multi_label_classification" or config.num_labels == 1)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, frozen; it finds the last token of a row by the tokenizer's PAD."""
        model = self.source.model
        model.config.pad_token_id = self.source.tokenizer.pad_token_id
        return model
