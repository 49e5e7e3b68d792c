"""What is looked at once more before an update, on a few rows: whether the model answers alike twice, the exact KL."""

import torch
from jaxtyping import Int
from torch import Tensor

from nearstep.algorithm.losses import probability_ratio
from nearstep.algorithm.ragged import sum_by_row
from nearstep.metrics import Max, Mean, Metric, Metrics
from nearstep.models.forward.exact_kl import rollout_exact_kl
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.recipe import Recipe
from nearstep.types import Experience, Rollout

REPEATED_ROWS = 4  # that go through the policy twice
REPEATED_EVERY = 100  # updates; the first one is among them


@torch.no_grad()
def probe(experience: Experience, update: int, r: Recipe) -> Metrics:
    """The metrics of these looks, with the weights that sampled."""
    metrics: dict[str, Metric] = {}
    if r.config.health_checks and update % REPEATED_EVERY == 1:
        rollout = some_rows(experience.rollout, REPEATED_ROWS)
        once, again = (rollout_logprobs(r.models.policy, rollout, r.sampling).sampled for _ in range(2))
        metrics["policy/repeat_gap"] = Max.of((probability_ratio(again, once) - 1).abs())
    if r.config.kl_exact_rows > 0 and r.models.reference is not None:
        rollout = some_rows(experience.rollout, r.config.kl_exact_rows)
        kl = rollout_exact_kl(r.models.policy, r.models.reference, rollout, r.sampling)
        metrics["objective/kl_exact"] = Mean.of(sum_by_row(kl, rollout.action_counts))
    return Metrics(metrics)


def some_rows(rollout: Rollout, count: int) -> Rollout:
    """At most `count` rows, evenly spread: rows of one prompt stand beside each other."""
    count = min(count, len(rollout))
    rows: Int[Tensor, " chosen"] = torch.arange(count, device=rollout.tokens.device) * len(rollout) // max(1, count)
    return rollout.select(rows)
