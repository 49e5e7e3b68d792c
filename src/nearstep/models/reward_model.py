"""How a reward model of any family reads rows of ids: at each row's own last token, not by pad ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from nearstep.algorithm.precision import wide
from nearstep.common.errors import ModelError
from nearstep.models.forward.forward import ScalarRole, states_of
from nearstep.models.forward.layout import RowLayout, RowTokens
from nearstep.models.forward.own_pass import recompute_activations, recomputing
from nearstep.models.roles import make_critic, transformers_model
from nearstep.types import row_groups


@dataclass(frozen=True)
class DecoderScorer:
    """A decoder with a linear head, which sees each row's last token only.

    Where rows can be packed, what neighbours begin with is read once.
    """

    model: nn.Module
    trunk: nn.Module
    head: nn.Module
    layout: RowLayout
    max_tokens: int
    autocast: bool = False

    @torch.no_grad()
    def score(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, " rows"]:
        """One score per row, in float32 at least, on the model's device."""
        leads = common_leads(rows)
        shared = [0] + [
            lead if before[:lead] == row[:lead] else 0
            for (before, row), lead in zip(pairwise(rows), leads[1:], strict=True)
        ]
        scores = []
        for group in row_groups([len(row) for row in rows], self.max_tokens, len(rows), shared):
            states = _last_states(self, rows[group.start : group.stop], leads[group.start : group.stop])
            scores.append(wide(self.head(states).squeeze(-1)))
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
    """A decoder with a linear head. Where rows can be packed, what the rows of a group begin with is read once."""

    role: ScalarRole

    def rewards(self, groups: Sequence[Sequence[Sequence[int]]]) -> Float[Tensor, " rows"]:
        """See RewardReader.rewards."""
        rows = [row for group in groups for row in group]
        leads = [lead for group in groups for lead in [shared_length(group)] * len(group)]
        states = _last_states(self.role, rows, leads)
        with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=self.role.autocast):
            return wide(self.role.head(states).squeeze(-1))


def _last_states(role: ScalarRole, rows: Sequence[Sequence[int]], leads: Sequence[int]) -> Float[Tensor, "rows width"]:
    """Hidden states of the last token of every row; neighbours with the same first `leads` tokens share them."""
    device = next(role.trunk.parameters()).device
    lengths = torch.tensor([len(row) for row in rows], device=device)
    tokens = torch.tensor([token for row in rows for token in row], device=device)
    return states_of(role, RowTokens(tokens, lengths, torch.tensor(leads, device=device)), lengths.cumsum(0) - 1)


def common_leads(rows: Sequence[Sequence[int]]) -> list[int]:
    """How many tokens each row shares with those beside it: 5 or 0 for all rows of a stretch that begins alike.

    A stretch grows as long as less has to be computed for it.
    """
    leads: list[int] = []
    start, lead = 0, 0
    for row in range(1, len(rows) + 1):
        alike = shared_length(rows[row - 1 : row + 1]) if row < len(rows) else 0
        alone = row - 1 == start
        longer = alike if alone else min(lead, alike)
        if longer > 0 and longer * (row - start) >= lead * (row - start - 1):
            lead = longer
            continue
        leads += [0 if alone else lead] * (row - start)
        start, lead = row, 0
    return leads


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
    with recomputing(model):
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
        return DecoderScorer(model, critic.trunk, critic.head, critic.layout, max_tokens, autocast)
    scorer = EncoderScorer(inner.eval(), pad_token_id if pad_token_id is not None else 0, max_tokens)
    with torch.no_grad():
        output = inner(input_ids=torch.ones(1, 2, dtype=torch.long, device=inner.device))
    if tuple(output[0].shape) != (1, 1):
        raise ModelError(
            f"{role}: {type(inner).__name__} gives {list(output[0].shape)} numbers for one text, one is needed. "
            "Use a model of AutoModelForSequenceClassification with num_labels=1."
        )
    return scorer


def is_decoder(model: PreTrainedModel) -> bool:
    """transformers' decoders put their one-label layer, named score, straight on the last hidden state."""
    return any(name == "score" for name, _ in model.named_children())
