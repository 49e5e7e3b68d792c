"""How alike two texts are token by token, by the hidden states of an encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.common.errors import ModelError
from nearstep.rewards.builtin.frozen_models import FrozenModel


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
    """An encoder of transformers, loaded when it first reads."""

    source: FrozenModel
    layer: int | None
    window_tokens: int
    batch_size: int

    def check(self) -> None:
        """Raise a ModelError if there is no such model, or it is no encoder, or has no such layer."""
        source, config = self.source, self.source.config
        if config.is_encoder_decoder:
            raise ModelError(f"{source.role}: {source.name!r} is an encoder with a decoder; take an encoder alone.")
        layers = config.get_text_config().num_hidden_layers
        if self.layer is not None and self.layer > layers:
            raise ModelError(f"{source.role}: {source.name!r} has {layers} layers, so none is layer {self.layer}.")

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> list[TokenVectors]:
        """The vectors of every token of each text, window by window."""
        found: list[list[TokenVectors]] = [[] for _ in texts]
        for together, inputs in self.source.windows(texts, None, self.window_tokens, self.batch_size):
            output = self.source.model(**inputs, output_hidden_states=True)
            states = output.hidden_states[-1 if self.layer is None else self.layer].float().cpu()
            masks = inputs["attention_mask"].cpu().bool()
            for window, token_states, mask in zip(together, states, masks, strict=True):
                vectors = torch.nn.functional.normalize(token_states[mask], dim=-1)
                found[window.row].append(TokenVectors(vectors, ~torch.tensor(window.special).bool()))
        return [
            TokenVectors(torch.cat([w.vectors for w in windows]), torch.cat([w.counts for w in windows]))
            for windows in found
        ]
