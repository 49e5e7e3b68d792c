"""How much each token's loss weighs beside the others: the ways to add up rows of different lengths."""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.algorithm.ragged import row_numbers

Aggregation: TypeAlias = Literal["token_mean", "sequence_mean", "sequence_sum", "sequence_sum_norm", "token_sum"]


def token_weights(rule: Aggregation, action_counts: Int[Tensor, " rows"], longest: int) -> Float[Tensor, " actions"]:
    """Weight of every token in the sum that `denominator` divides.

    `sequence_mean` weighs rows alike whatever their length, `sequence_sum_norm` divides by the constant `longest`
    (Dr. GRPO, 2503.20783), the others leave tokens as they are.
    """
    match rule:
        case "sequence_mean":
            return (1 / action_counts.clamp(min=1))[row_numbers(action_counts)]
        case "sequence_sum_norm":
            return torch.full((int(action_counts.sum()),), 1 / longest, device=action_counts.device)
        case "token_mean" | "sequence_sum" | "token_sum":
            return torch.ones(int(action_counts.sum()), device=action_counts.device)


def denominator(rule: Aggregation, *, tokens: Int[Tensor, ""], rows: Int[Tensor, ""]) -> Int[Tensor, ""]:
    """What the weighted sum over all tokens of a minibatch is divided by: its `tokens`, its `rows`, or 1."""
    match rule:
        case "token_mean":
            return tokens.clamp(min=1)
        case "token_sum":
            return torch.ones_like(tokens)
        case "sequence_mean" | "sequence_sum" | "sequence_sum_norm":
            return rows.clamp(min=1)
