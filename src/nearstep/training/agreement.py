"""What the policy leaves out where the critic's members agree most, and where they disagree most."""

from dataclasses import replace

import torch

from nearstep.algorithm.agreement import highest, lowest
from nearstep.metrics import Mean, Metric
from nearstep.training.recipe import Recipe
from nearstep.types import Experience


def with_agreement(experience: Experience, r: Recipe) -> Experience:
    """The advantages of the states on which the critic's members agree most are 0, those on which they disagree most
    have no entropy bonus: shares of the actions that train, over all processes (AsyPPO, 2510.01656).

    After whitening, so that the others keep their size. Every process calls it.
    """
    members, share, of_entropy = experience.members, r.config.advantage_mask_share, r.config.entropy_mask_share
    if members is None or share == of_entropy == 0:
        return experience
    spread, trains = members.disagreement, experience.of_actions(experience.trained)
    every = torch.cat([found.to(spread.device) for found in r.backend.gather(spread[trains].cpu())])
    advantages = experience.advantages
    if share > 0:
        agreed = lowest(spread, every, share)
        members, advantages = replace(members, agreed=agreed), advantages.masked_fill(agreed, 0.0)
    if of_entropy > 0:
        members = replace(members, entropy_weights=(~highest(spread, every, of_entropy)).to(advantages.dtype))
    return replace(experience, members=members, advantages=advantages)


def agreement_metrics(experience: Experience) -> dict[str, Metric]:
    """How far the members disagree at rollout, and which share of the actions that train lost something for it."""
    members, trains = experience.members, experience.of_actions(experience.trained)
    if members is None:
        return {}
    found: dict[str, Metric] = {"val/disagreement": Mean.of(members.disagreement[trains].float())}
    if members.agreed is not None:
        found["val/advantage_masked"] = Mean.of(members.agreed[trains].float())
    if members.entropy_weights is not None:
        found["val/entropy_masked"] = Mean.of((members.entropy_weights[trains] == 0).float())
    return found
