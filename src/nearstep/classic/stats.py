"""What `step` returns: the statistics of TRL up to 0.11, by its keys."""

from collections.abc import Mapping
from typing import Any

import torch

from nearstep.algorithm.kl import KLEstimator
from nearstep.algorithm.ragged import sum_by_row
from nearstep.training.token_kl import token_kl
from nearstep.types import Experience

# TRL's key = ours, whose meaning docs/metrics.md has.
SAME: Mapping[str, str] = {
    "objective/kl": "objective/kl", "objective/entropy": "objective/entropy",
    "ppo/loss/policy": "loss/policy_avg", "ppo/loss/value": "loss/value_avg",
    "ppo/policy/entropy": "policy/entropy_avg", "ppo/policy/approxkl": "policy/approxkl_avg",
    "ppo/policy/clipfrac": "policy/clipfrac_avg", "ppo/policy/ratio": "val/ratio",
    "ppo/val/clipfrac": "val/clipfrac_avg", "ppo/val/var_explained": "val/explained_variance",
    "ppo/mean_scores": "objective/scores", "ppo/std_scores": "objective/scores_std",
}  # fmt: skip


def step_stats(
    experience: Experience, numbers: Mapping[str, float], vf_coef: float, estimator: KLEstimator
) -> dict[str, Any]:
    """Means over all processes where `numbers` have them; what stands by row or token is of this process.

    A key whose number is not known is absent: the KL without a reference, an explained variance of equal returns.
    """
    stats: dict[str, Any] = {key: numbers[ours] for key, ours in SAME.items() if ours in numbers}
    if {"ppo/loss/policy", "ppo/loss/value"} <= stats.keys():
        stats["ppo/loss/total"] = stats["ppo/loss/policy"] + vf_coef * stats["ppo/loss/value"]
    rollout, ref = experience.rollout, experience.ref_logprobs
    counts = rollout.action_counts
    stats["objective/kl_coef"] = experience.kl_coef
    stats["objective/logprobs"] = _by_row(rollout.logprobs, counts)
    if ref is not None:
        stats["objective/ref_logprobs"] = _by_row(ref, counts)
        kl = token_kl(experience, estimator)
        assert kl is not None
        stats["objective/kl_dist"] = sum_by_row(kl, counts).cpu().numpy()
        stats["ppo/mean_non_score_reward"] = float(-experience.kl_coef * kl.mean())
    stats["ppo/policy/advantages"] = experience.advantages.cpu().numpy()
    stats["ppo/policy/advantages_mean"] = float(experience.advantages.mean())
    for name, values in (("returns", experience.returns), ("val", experience.values)):
        stats[f"ppo/{name}/mean"] = float(values.mean())
        stats[f"ppo/{name}/var"] = float(values.var()) if len(values) > 1 else 0.0
    stats["ppo/val/error"] = float((experience.values - experience.returns).square().mean())
    for name, lengths in (("queries", rollout.prompt_lengths), ("responses", counts)):
        sizes = lengths.float().cpu()
        stats[f"tokens/{name}_len_mean"] = float(sizes.mean())
        stats[f"tokens/{name}_len_std"] = float(sizes.std()) if len(sizes) > 1 else 0.0
        stats[f"tokens/{name}_dist"] = sizes.numpy()
    return stats


def _by_row(values: torch.Tensor, counts: torch.Tensor) -> list[Any]:
    return [row.cpu().numpy() for row in values.split(counts.tolist())]
