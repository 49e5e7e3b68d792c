"""The axis of loss aggregation: how much each token's loss weighs beside the others, in rows of different lengths.

The loss of a minibatch is Σ weight · loss / divisor. Weights belong to rows, the divisor to counts over all processes
that are fixed before the split into micro-batches: so no split changes a gradient.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from nearstep.algorithm.ragged import row_numbers


@dataclass(frozen=True)
class MinibatchCounts:
    """How much a minibatch holds, over all processes."""

    tokens: Int[Tensor, ""]  # actions that are trained on
    rows: Int[Tensor, ""]  # rows with at least one action


@runtime_checkable
class LossAggregation(Protocol):
    """A rule for adding up token losses. Any frozen dataclass with these two members is one."""

    def weights(self, action_counts: Int[Tensor, " rows"]) -> Float[Tensor, " actions"]:
        """Weight of every token of these rows. A row's weights depend on that row alone."""

    def divisor(self, counts: MinibatchCounts) -> Shaped[Tensor, ""]:
        """What the weighted sum over the minibatch is divided by: above 0, also where nothing is counted."""


@dataclass(frozen=True)
class TokenMean:
    """The mean over tokens."""

    def weights(self, action_counts: Int[Tensor, " rows"]) -> Float[Tensor, " actions"]:
        """1 everywhere."""
        return _ones(action_counts)

    def divisor(self, counts: MinibatchCounts) -> Shaped[Tensor, ""]:
        """The number of tokens."""
        return counts.tokens.clamp(min=1)


@dataclass(frozen=True)
class SequenceMean:
    """The mean over rows of their mean: rows weigh alike whatever their length."""

    def weights(self, action_counts: Int[Tensor, " rows"]) -> Float[Tensor, " actions"]:
        """One over the row's length."""
        return (1 / action_counts.clamp(min=1))[row_numbers(action_counts)]

    def divisor(self, counts: MinibatchCounts) -> Shaped[Tensor, ""]:
        """The number of rows."""
        return counts.rows.clamp(min=1)


@dataclass(frozen=True)
class SequenceSum:
    """The mean over rows of their sum, divided by the constant `length`: 1, or the longest length (2503.20783)."""

    length: int = 1

    def weights(self, action_counts: Int[Tensor, " rows"]) -> Float[Tensor, " actions"]:
        """One over the constant."""
        return torch.full((int(action_counts.sum()),), 1 / self.length, device=action_counts.device)

    def divisor(self, counts: MinibatchCounts) -> Shaped[Tensor, ""]:
        """The number of rows."""
        return counts.rows.clamp(min=1)


@dataclass(frozen=True)
class TokenSum:
    """The sum over tokens."""

    def weights(self, action_counts: Int[Tensor, " rows"]) -> Float[Tensor, " actions"]:
        """1 everywhere."""
        return _ones(action_counts)

    def divisor(self, counts: MinibatchCounts) -> Shaped[Tensor, ""]:
        """1."""
        return torch.ones_like(counts.tokens)


def _ones(action_counts: Tensor) -> Tensor:
    return torch.ones(int(action_counts.sum()), device=action_counts.device)
