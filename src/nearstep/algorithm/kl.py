"""How far the policy is from its reference at a sampled token: the estimators k1, k2 and k3, and the plain distance."""

from typing import Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.precision import wide

KLEstimator: TypeAlias = Literal["k1", "k2", "k3", "abs"]

LOG_RATIO_LIMIT = 20.0  # exp(20) is 5e8: beyond it only overflow is left


ADAPTIVE_KL_LIMIT = 0.2  # largest relative error that the controller believes


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, horizon: int, episodes: int) -> float:
    """The coefficient after `episodes` with a mean `kl` per episode: raised where it was above its target.

    Source: Ziegler et al. 2019 (1909.08593), section 2.2: β ← β·(1 + clip(kl / target − 1, ±0.2)·episodes / horizon).
    """
    error = min(max(kl / target - 1, -ADAPTIVE_KL_LIMIT), ADAPTIVE_KL_LIMIT)
    return kl_coef * (1 + error * episodes / horizon)


def log_ratios(logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log π − log π_old at every token, held within ±20, in float32 at least."""
    return (wide(logprobs) - wide(old_logprobs)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def kl_estimate(
    logprobs: Float[Tensor, " actions"], ref_logprobs: Float[Tensor, " actions"], estimator: KLEstimator
) -> Float[Tensor, " actions"]:
    """Estimate KL(policy ‖ reference) at each sampled token, in nats.

    With ℓ = log π_ref − log π: k1 = −ℓ (unbiased), k2 = ℓ²/2, k3 = exp(ℓ) − 1 − ℓ (unbiased, never negative), and
    abs = |ℓ|, which no KL is the mean of: the penalty that TRL and verl call so.
    Source: Schulman, "Approximating KL divergence", 2020.
    """
    log_ratio = wide(ref_logprobs) - wide(logprobs)
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    if estimator == "abs":
        return log_ratio.abs()
    log_ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return log_ratio.expm1() - log_ratio
