"""How a row's score becomes rewards of its tokens: stop-token rules, KL penalty, place of the score."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def score_after_stop_rules(
    scores: Float[Tensor, " rows"],
    finished: Bool[Tensor, " rows"],
    *,
    missing_eos_penalty: float | None = None,
    replacement: float | None = None,
) -> Float[Tensor, " rows"]:
    """Score the rows that did not end themselves.

    `missing_eos_penalty` is subtracted from their score (TRL ≥ 0.11); `replacement` takes its place (the EOS trick of
    2403.17031, detail 23). They are different operators; with neither, scores stay as they are.
    """
    if replacement is not None:
        return torch.where(finished, scores, torch.full_like(scores, replacement))
    if missing_eos_penalty is not None:
        return torch.where(finished, scores, scores - missing_eos_penalty)
    return scores


def soft_overlong_penalty(lengths: Int[Tensor, " rows"], *, longest: int, buffer: int) -> Float[Tensor, " rows"]:
    """0 up to longest − buffer tokens, then a straight line down to −1 at `longest`, and −1 beyond.

    Source: DAPO (2503.14476), eq. 13.
    """
    return ((longest - buffer - lengths) / buffer).clamp(min=-1, max=0)


def add_scores(
    rewards: Float[Tensor, " actions"],
    scores: Float[Tensor, " rows"],
    action_counts: Int[Tensor, " rows"],
    *,
    at_last: Bool[Tensor, " rows"],
) -> Float[Tensor, " actions"]:
    """`rewards`, with the row's score added at its last action where `at_last`; an empty row gets none."""
    with_actions = at_last & (action_counts > 0)
    last_actions = (action_counts.cumsum(0) - 1)[with_actions]
    return rewards.index_add(0, last_actions, scores[with_actions].to(rewards.dtype))
