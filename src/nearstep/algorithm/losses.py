"""Which quantities are minimised, per token: the policy loss under a trust region's weight, and the clipped value loss.

Both return one number per token. The caller divides their sum by a count that is fixed before any split into
micro-batches or processes, so no split changes a gradient.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.algorithm.kl import log_ratios
from nearstep.algorithm.precision import wide
from nearstep.algorithm.ragged import row_numbers, sum_by_row


def probability_ratio(
    logprobs: Float[Tensor, " actions"], old_logprobs: Float[Tensor, " actions"]
) -> Float[Tensor, " actions"]:
    """π / π_old at each sampled token; the log-ratio is held within ±20 so that it stays finite."""
    return log_ratios(logprobs, old_logprobs).exp()


def policy_loss(
    logprobs: Float[Tensor, " actions"],
    old_logprobs: Float[Tensor, " actions"],
    advantages: Float[Tensor, " actions"],
    weight: Float[Tensor, " actions"],
    ratio_cap: float | None = None,
) -> Float[Tensor, " actions"]:
    """The importance-weighted policy gradient under a trust region's weight.

    Value −A·min(r, cap) everywhere; gradient −A·min(r, cap)·weight·∇log π. With the weight of `Clip` this is the
    gradient of PPO's clipped objective (1707.06347, eq. 7); with that of a divergence it is that of 2602.04879.
    """
    logprobs = wide(logprobs)
    ratio = probability_ratio(logprobs, old_logprobs).detach()
    if ratio_cap is not None:
        ratio = ratio.clamp(max=ratio_cap)
    return -advantages * ratio * (1 + weight * (logprobs - logprobs.detach()))


def sequence_anchor(
    logprobs: Float[Tensor, " actions"],
    old_logprobs: Float[Tensor, " actions"],
    action_counts: Int[Tensor, " rows"],
) -> Float[Tensor, " actions"]:
    """Log-probs against which every token of a row, or of a turn with their lengths, has the same ratio, the geometric
    mean of the row's.

    With them `policy_loss` has GSPO's gradient: s = exp(mean log π / π_old) once for the row, ∇log π for each token.
    Source: 2507.18071, eq. 7 and 10. `logprobs` must carry no gradient.
    """
    gaps = wide(logprobs) - wide(old_logprobs)
    means = sum_by_row(gaps, action_counts) / action_counts.clamp(min=1)
    return wide(logprobs) - means[row_numbers(action_counts)]


def clipped_surrogate(
    ratio: Float[Tensor, " actions"],
    advantages: Float[Tensor, " actions"],
    *,
    low: float,
    high: float,
    dual: float | None = None,
) -> Float[Tensor, " actions"]:
    """PPO's own loss, max(−A·r, −A·clip(r, 1 − low, 1 + high)): what is logged as the policy loss of `Clip`.

    With `dual` it is at most −dual·A where A is negative (1912.09729, eq. 2).
    """
    loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - low, 1 + high))
    if dual is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual * advantages), loss)


def absolute_surrogate(
    ratio: Float[Tensor, " actions"], advantages: Float[Tensor, " actions"], *, low: float, high: float
) -> Float[Tensor, " actions"]:
    """max(|A·r|, |A·clip(r, 1 − low, 1 + high)|), which does not cancel where advantages are whitened.

    MindSpeed-LLM logs it as abs_pg_loss, to compare runs by.
    """
    return advantages.abs() * torch.maximum(ratio, ratio.clamp(1 - low, 1 + high))


def clip_values(
    values: Float[Tensor, " states"], old_values: Float[Tensor, " states"], cliprange: float
) -> Float[Tensor, " states"]:
    """Values held within `cliprange` of what they were at rollout."""
    return torch.clamp(values, old_values - cliprange, old_values + cliprange)


def value_loss(
    values: Float[Tensor, " states"],
    old_values: Float[Tensor, " states"],
    returns: Float[Tensor, " states"],
    *,
    cliprange: float,
) -> Float[Tensor, " states"]:
    """½·max((V − R)², (clip(V) − R)²): the pessimistic squared error of OpenAI's PPO. The ½ is included."""
    values, old_values, returns = wide(values), wide(old_values), wide(returns)
    clipped = clip_values(values, old_values, cliprange)
    return torch.maximum((values - returns).square(), (clipped - returns).square()) / 2
