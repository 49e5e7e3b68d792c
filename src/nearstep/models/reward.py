"""How a reward model of any family scores rows of ids: at each row's own last token, not by pad ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nearstep.algorithm.precision import wide
from nearstep.errors import ModelError
from nearstep.models.forward import row_states
from nearstep.models.roles import make_critic, transformers_model
from nearstep.types import row_groups


@dataclass(frozen=True)
class DecoderScorer:
    """A decoder with a linear head: rows are packed, the head sees each row's last token only."""

    model: nn.Module
    trunk: nn.Module
    head: nn.Module
    max_tokens: int
    autocast: bool = False

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, " rows"]:
        """One score per row, in float32 at least, on the model's device."""
        lengths = [len(row) for row in rows]
        device = next(self.model.parameters()).device
        scores = []
        for group in row_groups(lengths, self.max_tokens, len(rows)):
            tokens = torch.tensor([token for row in group for token in rows[row]], device=device)
            of_group = torch.tensor([lengths[row] for row in group], device=device)
            states = row_states(self, tokens, of_group)
            scores.append(wide(self.head(states[of_group.cumsum(0) - 1]).squeeze(-1)))
        return torch.cat(scores)


@dataclass(frozen=True)
class EncoderScorer:
    """A bidirectional classifier (BERT, DeBERTa, …): padded on the right under an explicit mask, its own pooling."""

    model: PreTrainedModel
    pad_token_id: int
    max_tokens: int

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, " rows"]:
        """One score per row, in float32 at least, on the model's device."""
        widest = max(len(row) for row in rows)
        scores = []
        for group in row_groups([widest] * len(rows), self.max_tokens, len(rows)):
            padded = [list(rows[row]) + [self.pad_token_id] * (widest - len(rows[row])) for row in group]
            mask = [[1] * len(rows[row]) + [0] * (widest - len(rows[row])) for row in group]
            output = self.model(
                input_ids=torch.tensor(padded, device=self.model.device),
                attention_mask=torch.tensor(mask, device=self.model.device),
            )
            scores.append(wide(output.logits[:, 0]))
        return torch.cat(scores)


def make_scorer(
    model: nn.Module, *, role: str, pad_token_id: int | None, max_tokens: int, autocast: bool = False
) -> DecoderScorer | EncoderScorer:
    """Make a reward model ready to score. Raises ModelError if it has several labels or no head."""
    inner = transformers_model(model, role)
    model.requires_grad_(False)
    if is_decoder(inner):
        critic = make_critic(model, role=role, autocast=autocast)
        return DecoderScorer(model, critic.trunk, critic.head, max_tokens, autocast)
    scorer = EncoderScorer(inner.eval(), pad_token_id if pad_token_id is not None else 0, max_tokens)
    with torch.no_grad():
        output = inner(input_ids=torch.ones(1, 2, dtype=torch.long, device=inner.device))
    if tuple(output[0].shape) != (1, 1):
        raise ModelError(
            f"{role}: {type(inner).__name__} gives {list(output[0].shape)} numbers for one text, one is needed. "
            "Use a model of "
            "AutoModelForSequenceClassification with num_labels=1."
        )
    return scorer


def is_decoder(model: PreTrainedModel) -> bool:
    """transformers' decoders put their one-label layer, named score, straight on the last hidden state."""
    return any(name == "score" for name, _ in model.named_children())
