"""How rows lie in a forward pass, each seeing only itself: packed back to back, or padded on the right."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from nearstep.algorithm.ragged import places_in_row, row_numbers
from nearstep.common.errors import ModelError
from nearstep.models.forward.packing import pack
from nearstep.models.forward.trunk import hidden_states, masked_states
from nearstep.types import Rollout


@dataclass(frozen=True)
class RowTokens:
    """Rows back to back; where neighbours have the same first `leads` tokens, these may be computed once."""

    tokens: Int[Tensor, " tokens"]
    lengths: Int[Tensor, " rows"]
    leads: Int[Tensor, " rows"]

    @staticmethod
    def of(rollout: Rollout) -> "RowTokens":
        """Samples of one prompt that stand beside each other share the prompt.

        Raises ModelError for rows that have more to read than tokens: nothing here hands it to a model yet.
        """
        if rollout.model_inputs:
            raise ModelError(
                f"the rollout has {', '.join(rollout.model_inputs)} beside its tokens (Rollout.model_inputs), and "
                "models read tokens alone here: log-probs would be of other inputs than the engine sampled from"
            )
        return RowTokens(rollout.tokens, rollout.row_lengths, rollout.prompt_lengths)


@runtime_checkable
class RowLayout(Protocol):
    """How rows go through a trunk."""

    @property
    def token_by_token(self) -> bool:
        """Whether only attention mixes tokens, so that a row can go on from keys and values that were kept."""

    @property
    def note(self) -> str | None:
        """What the user should know of it."""

    def states(
        self, trunk: nn.Module, rows: RowTokens, read: Int[Tensor, " read"], *, autocast: bool
    ) -> Float[Tensor, "read width"]:
        """Last states of some tokens, given as places among all tokens of the rows."""


@dataclass(frozen=True)
class PackedRows:
    """Back to back, nothing between them, under an attention of ours that knows their borders."""

    token_by_token = True
    note = None

    def states(
        self, trunk: nn.Module, rows: RowTokens, read: Int[Tensor, " read"], *, autocast: bool
    ) -> Float[Tensor, "read width"]:
        """See RowLayout.states."""
        packed = pack(rows.tokens, rows.lengths, rows.leads)
        found = hidden_states(trunk, packed.tokens, packed.positions[None], packed.plan, autocast=autocast)
        return found[packed.places[read]]


@dataclass(frozen=True)
class PaddedRows:
    """Side by side under a mask, through the model's own attention, for models that cannot be packed.

    Padding lies on the right: what is causal sees none of it, positions count from 0 by themselves, and a recurrent
    state has not met it yet. Rows of about the same length go together, so that less than half of a pass is padding.
    """

    why: str
    own_cache: bool = False  # whether a row can go on from the model's own cache, see OwnCache

    token_by_token = False

    @property
    def note(self) -> str:
        """See RowLayout.note."""
        generation = "generates from its own cache" if self.own_cache else "generates by computing rows anew each token"
        return f"runs on padded rows, which takes more time and memory than packed ones, and {generation}: {self.why}."

    def states(
        self, trunk: nn.Module, rows: RowTokens, read: Int[Tensor, " read"], *, autocast: bool
    ) -> Float[Tensor, "read width"]:
        """See RowLayout.states."""
        all_ids = rows.tokens.split(rows.lengths.tolist())
        sizes = torch.tensor([len(ids).bit_length() for ids in all_ids], device=read.device)
        row, place = row_numbers(rows.lengths)[read], places_in_row(rows.lengths)[read]
        found, order = [], []
        for size in sizes.unique().tolist():
            together = (sizes == size).nonzero().squeeze(-1)
            ids = pad_sequence([all_ids[number] for number in together.tolist()], batch_first=True)
            lengths = rows.lengths[together]
            mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
            mine = (sizes[row] == size).nonzero().squeeze(-1)
            states = masked_states(trunk, ids, mask, autocast=autocast)
            found.append(states[torch.searchsorted(together, row[mine]), place[mine]])
            order.append(mine)
        return torch.cat(found)[torch.cat(order).argsort()]
