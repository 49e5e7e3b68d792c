"""How far the policy was from its reference at each action of a rollout, and what is reported of it."""

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.kl import KLEstimator, kl_estimate
from nearstep.algorithm.ragged import sum_by_row
from nearstep.metrics import Max, Mean, Metric
from nearstep.types import Experience, Rollout


def token_kl(experience: Experience, estimator: KLEstimator) -> Float[Tensor, " actions"] | None:
    """The KL in nats: over the whole vocabulary where that is known, else its estimate; None without a reference."""
    if experience.ref_logprobs is None or experience.exact_kl is not None:
        return experience.exact_kl
    return kl_estimate(experience.rollout.logprobs, experience.ref_logprobs, estimator)


def penalised_kl(
    rollout: Rollout,
    ref_logprobs: Float[Tensor, " actions"],
    estimator: KLEstimator,
    exact: Float[Tensor, " actions"] | None,
) -> Float[Tensor, " actions"]:
    """What the KL penalty of each action weighs: its exact KL, if that is known, else the estimate."""
    return kl_estimate(rollout.logprobs, ref_logprobs, estimator) if exact is None else exact


def describe_kl(experience: Experience, estimator: KLEstimator) -> tuple[Tensor, dict[str, Metric]]:
    """What the KL penalty costs every row, and the KL's own metrics, where there is a reference."""
    rollout = experience.rollout.by_episode()
    kl = token_kl(experience, estimator)
    if kl is None or experience.ref_logprobs is None:
        return experience.scores.new_zeros(len(rollout)), {}
    row_kl = sum_by_row(kl, rollout.action_counts)
    k3 = kl_estimate(rollout.logprobs, experience.ref_logprobs, "k3")
    return -experience.kl_coef * row_kl, {
        "objective/kl": Mean.of(row_kl),
        "objective/kl_per_token": Mean.of(kl),
        "objective/kl_k3": Mean.of(sum_by_row(k3, rollout.action_counts)),
        "objective/kl_coef": Max.of(torch.tensor([experience.kl_coef])),
    }
