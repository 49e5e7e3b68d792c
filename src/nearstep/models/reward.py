"""How a reward model of any family reads rows of ids: at each row's own last token, not by pad ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nearstep.algorithm.precision import wide
from nearstep.errors import ModelError
from nearstep.models.forward import ScalarRole, packed_states, row_states
from nearstep.models.packing import pack
from nearstep.models.roles import make_critic, recompute_activations, transformers_model
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
        groups = row_groups([widest] * len(rows), self.max_tokens, len(rows))
        return torch.cat([encoder_rewards(self.model, [rows[row] for row in g], self.pad_token_id) for g in groups])


@runtime_checkable
class RewardReader(Protocol):
    """A reward model that is being trained."""

    def rewards(self, groups: Sequence[Sequence[Sequence[int]]]) -> Float[Tensor, " rows"]:
        """The reward of every row of ids, group by group, with gradient; the rows of a group often begin alike."""


@dataclass(frozen=True)
class DecoderReader:
    """A decoder with a linear head: groups are packed, what the rows of a group begin with is read once."""

    role: ScalarRole

    def rewards(self, groups: Sequence[Sequence[Sequence[int]]]) -> Float[Tensor, " rows"]:
        """See RewardReader.rewards."""
        device = next(self.role.trunk.parameters()).device
        rows = [row for group in groups for row in group]
        lengths = torch.tensor([len(row) for row in rows], device=device)
        leads = torch.tensor([shared for group in groups for shared in [shared_length(group)] * len(group)])
        packed = pack(torch.tensor([token for row in rows for token in row], device=device), lengths, leads.to(device))
        states = packed_states(self.role, packed)[packed.places[lengths.cumsum(0) - 1]]
        with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=self.role.autocast):
            return wide(self.role.head(states).squeeze(-1))


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; 0 for a single row."""
    if len(rows) == 1:
        return 0
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False)))


@dataclass(frozen=True)
class EncoderReader:
    """A bidirectional classifier: every row by itself, padded on the right under an explicit mask."""

    model: PreTrainedModel
    pad_token_id: int
    autocast: bool = False

    def rewards(self, groups: Sequence[Sequence[Sequence[int]]]) -> Float[Tensor, " rows"]:
        """See RewardReader.rewards."""
        rows = [row for group in groups for row in group]
        with torch.autocast(self.model.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return encoder_rewards(self.model, rows, self.pad_token_id)


def encoder_rewards(model: PreTrainedModel, rows: Sequence[Sequence[int]], pad_token_id: int) -> Float[Tensor, " rows"]:
    """A classifier's first output for rows of ids, in float32 at least."""
    widest = max(map(len, rows))
    padded = [list(row) + [pad_token_id] * (widest - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (widest - len(row)) for row in rows]
    output = model(
        input_ids=torch.tensor(padded, device=model.device), attention_mask=torch.tensor(mask, device=model.device)
    )
    return wide(output.logits[:, 0])


def make_reader(
    model: nn.Module, *, role: str, pad_token_id: int | None, autocast: bool = False, checkpointing: bool = False
) -> DecoderReader | EncoderReader:
    """Make a reward model ready to be trained: dropout off. Raises ModelError as `make_critic` does."""
    inner = transformers_model(model, role)
    if is_decoder(inner):
        return DecoderReader(make_critic(model, role=role, autocast=autocast, checkpointing=checkpointing))
    inner.eval()
    if checkpointing:
        recompute_activations(inner)
    return EncoderReader(inner, pad_token_id if pad_token_id is not None else 0, autocast)


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
