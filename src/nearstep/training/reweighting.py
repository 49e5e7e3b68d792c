"""How much each state counts for a critic that trains after the policy: by what the policy's steps have changed."""

from dataclasses import replace

import torch

from nearstep.algorithm.anchors import interpolated
from nearstep.algorithm.correction import Correction
from nearstep.algorithm.trust_regions import TokenLogprobs
from nearstep.metrics import EffectiveSampleSize, Mean, Metrics
from nearstep.training.frozen_passes import PassLimits, logprobs_under
from nearstep.training.mismatch import action_rows
from nearstep.training.recipe import Recipe
from nearstep.training.schedules import RatioBand
from nearstep.types import Experience


@torch.no_grad()
def reweighted(experience: Experience, band: RatioBand, r: Recipe) -> tuple[Experience, Metrics]:
    """The experience with a weight for the state before every action, fixed for all epochs, and what they are like.

    The weight is π/π_old of the action taken there, π the policy as it is now (one more forward pass) and π_old what
    ratios are taken against (an interpolated anchor where it stands now): a sample of the old policy's then stands for
    what the new one would do. Outside the band it is 0. Of each token alone, whatever ratio_level is. Source: PACT
    (2609.26355, at second hand).
    """
    old, share = experience.old_logprobs, experience.anchor_share
    with r.backend.gathered(r.models.policy.model):
        now = old
        if len(experience):
            now = logprobs_under(r.models.policy, experience.rollout, r.sampling, PassLimits.of(r))
    if share is not None:
        old = interpolated(TokenLogprobs(old), TokenLogprobs(now), share).sampled
    weights = Correction(action="mask", low=band.low, high=band.high).importance(
        now, old, action_rows(experience.rollout)
    )
    metrics = Metrics(
        {
            "value/weight_avg": Mean.of(weights),
            "value/weight_dropped": Mean.of((weights == 0).float()),
            "value/weight_effective": EffectiveSampleSize.of(weights),
        }
    )
    return replace(experience, value_weights=weights), metrics
