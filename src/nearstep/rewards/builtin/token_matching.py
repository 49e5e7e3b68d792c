"""How alike two texts are token by token, by the hidden states of an encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ModelError
from nearstep.rewards.builtin.frozen_models import batches, load_frozen, load_reader, read_config, windows
from nearstep.rewards.builtin.metadata import fields_only


@dataclass(frozen=True)
class TokenVectors:
    """Unit vectors of the tokens of a text. Special tokens may be matched, but their own match does not count."""

    vectors: Float[Tensor, "tokens width"]
    counts: Bool[Tensor, " tokens"]

    def f1(self, other: "TokenVectors") -> float:
        """The harmonic mean of the two means of best cosines (BERTScore, section 3); 0 if either has no token."""
        if not self.counts.any() or not other.counts.any():
            return 0.0
        cosines = (self.vectors @ other.vectors.T).clamp(0, 1)
        precision = float(cosines.amax(1)[self.counts].mean())
        recall = float(cosines.amax(0)[other.counts].mean())
        return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0


@dataclass(frozen=True)
class TokenMatcher:
    """An encoder of transformers by its folder or hub name, loaded when it first reads."""

    role: str
    name: str
    layer: int | None
    window_tokens: int
    batch_size: int
    device: str

    def __getstate__(self) -> dict[str, object]:
        return fields_only(self)

    def check(self) -> None:
        """Raise a ModelError if there is no such model, or it is no encoder, or has no such layer."""
        if self._config.is_encoder_decoder:
            raise ModelError(f"{self.role}: {self.name!r} is an encoder with a decoder; take an encoder alone.")
        layers = self._config.get_text_config().num_hidden_layers
        if self.layer is not None and self.layer > layers:
            raise ModelError(f"{self.role}: {self.name!r} has {layers} layers, so none is layer {self.layer}.")

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> list[TokenVectors]:
        """The vectors of every token of each text, window by window."""
        pieces = windows(self.tokenizer, self._config, texts, None, self.window_tokens)
        found: list[list[TokenVectors]] = [[] for _ in texts]
        for together, inputs in batches(self.tokenizer, pieces, self.batch_size, self.model.device):
            output = self.model(**inputs, output_hidden_states=True)
            states = output.hidden_states[-1 if self.layer is None else self.layer].float().cpu()
            masks = inputs["attention_mask"].cpu().bool()
            for window, token_states, mask in zip(together, states, masks, strict=True):
                vectors = torch.nn.functional.normalize(token_states[mask], dim=-1)
                found[window.row].append(TokenVectors(vectors, ~torch.tensor(window.special).bool()))
        return [
            TokenVectors(torch.cat([w.vectors for w in windows]), torch.cat([w.counts for w in windows]))
            for windows in found
        ]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own."""
        return load_reader(self.role, self.name)

    @cached_property
    def model(self) -> PreTrainedModel:
        """The encoder, frozen."""
        return load_frozen(self.role, AutoModel, self.name, self.device)

    @cached_property
    def _config(self) -> PreTrainedConfig:
        return read_config(self.role, self.name)
