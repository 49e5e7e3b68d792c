"""How far the policy has moved at a token, as a divergence between its distribution and the one that sampled.

All are computed in float32 at least, from log-probabilities, and stay finite where a probability is 0 or 1. `old` is
the sampling policy μ = q, `now` the current policy π = p. Binary and top-K forms are lower bounds of the divergence
over the whole vocabulary; a top-K form with one token is the binary one. Source: Divergence PPO (2602.04879).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.precision import wide

SMALLEST_MASS = 1e-12
SMALLEST_LOG = math.log(SMALLEST_MASS)


def log_one_minus_exp(log_probability: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 − p) from log p, exact for p near 0 and near 1, at least log 1e-12."""
    near_one = log_probability > -math.log(2)
    # Each branch sees only what it is exact for: where() computes both.
    log_near_one = torch.log(-torch.expm1(log_probability.where(near_one, torch.full_like(log_probability, -0.5))))
    log_elsewhere = torch.log1p(-torch.exp(log_probability.where(~near_one, torch.full_like(log_probability, -1.0))))
    return torch.where(near_one, log_near_one, log_elsewhere).clamp(min=SMALLEST_LOG)


def binary_tv(now: Float[Tensor, " actions"], old: Float[Tensor, " actions"]) -> Float[Tensor, " actions"]:
    """Total variation between "the sampled token" and "any other": |p − q|."""
    return (wide(now).exp() - wide(old).exp()).abs()


def binary_kl(now: Float[Tensor, " actions"], old: Float[Tensor, " actions"]) -> Float[Tensor, " actions"]:
    """KL(μ ‖ π) between "the sampled token" and "any other": q·log(q/p) + (1 − q)·log((1 − q)/(1 − p))."""
    log_p, log_q = wide(now).clamp(min=SMALLEST_LOG), wide(old).clamp(min=SMALLEST_LOG)
    q = log_q.exp()
    rest = (1 - q) * (log_one_minus_exp(log_q) - log_one_minus_exp(log_p))
    return (q * (log_q - log_p) + rest).clamp(min=0)


def topk_tv(now: Float[Tensor, "actions k"], old: Float[Tensor, "actions k"]) -> Float[Tensor, " actions"]:
    """Total variation over the recorded tokens and one bucket for the rest."""
    p, q = wide(now).exp(), wide(old).exp()
    rest = (p.sum(-1) - q.sum(-1)).abs()
    return ((p - q).abs().sum(-1) + rest) / 2


def topk_kl(now: Float[Tensor, "actions k"], old: Float[Tensor, "actions k"]) -> Float[Tensor, " actions"]:
    """KL(μ ‖ π) over the recorded tokens and one bucket for the rest."""
    log_p, log_q = wide(now).clamp(min=SMALLEST_LOG), wide(old).clamp(min=SMALLEST_LOG)
    p_rest = (1 - log_p.exp().sum(-1)).clamp(min=SMALLEST_MASS)
    q_rest = (1 - log_q.exp().sum(-1)).clamp(min=SMALLEST_MASS)
    listed_part = (log_q.exp() * (log_q - log_p)).sum(-1)
    return (listed_part + q_rest * (q_rest.log() - p_rest.log())).clamp(min=0)
