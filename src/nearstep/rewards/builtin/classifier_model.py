"""What a text classifier says of texts and pairs of texts, every window of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ModelError
from nearstep.rewards.builtin.frozen_models import batches, load_frozen, load_reader, read_config, windows
from nearstep.rewards.builtin.metadata import fields_only


@dataclass(frozen=True)
class ClassifierReader:
    """A classifier of transformers by its folder or hub name, loaded when it first reads."""

    role: str
    name: str
    window_tokens: int
    batch_size: int
    device: str

    def __getstate__(self) -> dict[str, object]:
        return fields_only(self)

    def indices(self, labels: Sequence[str]) -> list[int]:
        """Where the model has these labels, in any case of letters, read without weights.

        Raises ModelError if there is no such model, or it has not one of the labels.
        """
        names = label_names(self._config)
        known = [name.casefold() for name in names]
        absent = [label for label in labels if label.casefold() not in known]
        if absent:
            raise ModelError(
                f"{self.role}: the model {self.name!r} has no label {absent[0]!r}. Its labels: {', '.join(names)}."
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
        pieces = windows(self.tokenizer, self._config, texts, pairs, self.window_tokens)
        found: list[list[Tensor]] = [[] for _ in texts]
        for together, inputs in batches(self.tokenizer, pieces, self.batch_size, self.model.device):
            logits = self.model(**inputs).logits.float()
            probabilities = logits.sigmoid() if self.multi_label else logits.softmax(-1)
            for window, window_probabilities in zip(together, probabilities.cpu(), strict=True):
                found[window.row].append(window_probabilities)
        return [torch.stack(windows) for windows in found]

    @cached_property
    def multi_label(self) -> bool:
        """Whether several labels may hold of a text at once."""
        return bool(self._config.problem_type == "multi_label_classification" or self._config.num_labels == 1)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return load_reader(self.role, self.name)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model, frozen."""
        model = load_frozen(self.role, AutoModelForSequenceClassification, self.name, self.device)
        model.config.pad_token_id = self.tokenizer.pad_token_id
        return model

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return read_config(self.role, self.name)


def label_names(config: PreTrainedConfig) -> list[str]:
    """The labels of a classifier in the order of its outputs."""
    return [config.id2label[index] for index in range(config.num_labels)]
