"""Which quantities are minimised, per token: the policy loss under a trust region's mask, and the clipped value loss.

Both return one number per token. The caller divides their sum by a count that is fixed before any split into
micro-batches or processes, so no split changes a gradient.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearstep.algorithm.kl import LOG_RATIO_LIMIT
from nearstep.algorithm.precision import wide


def probability_ratio(
    logprobs: Float[Tensor, " actions"], old_logprobs: Float[Tensor, " actions"]
) -> Float[Tensor, " actions"]:
    """π / π_old at each sampled token; the log-ratio is held within ±20 so that it stays finite."""
    return (wide(logprobs) - wide(old_logprobs)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def policy_loss(
    logprobs: Float[Tensor, " actions"],
    old_logprobs: Float[Tensor, " actions"],
    advantages: Float[Tensor, " actions"],
    inside: Bool[Tensor, " actions"],
    ratio_cap: float | None = None,
) -> Float[Tensor, " actions"]:
    """The importance-weighted policy gradient, held fixed where `inside` is false.

    Value −A·min(r, cap) everywhere; gradient −A·min(r, cap)·∇log π inside, none outside. With `Clip` as the mask
    this is the gradient of PPO's clipped objective (1707.06347, eq. 7); with a divergence mask it is that of
    2602.04879.
    """
    logprobs = wide(logprobs)
    ratio = probability_ratio(logprobs, old_logprobs).detach()
    if ratio_cap is not None:
        ratio = ratio.clamp(max=ratio_cap)
    moving = torch.where(inside, logprobs, logprobs.detach())
    return -advantages * ratio * (1 + moving - logprobs.detach())


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
