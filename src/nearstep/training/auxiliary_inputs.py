"""What auxiliary losses need of a rollout, fixed before the update: which rows are good, what a teacher makes of it."""

from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from nearstep.algorithm.precision import wide
from nearstep.config.auxiliary import AuxiliarySettings
from nearstep.metrics import Mean, Metric
from nearstep.training.credit import on_all_rows
from nearstep.training.frozen_passes import teacher_logprobs
from nearstep.training.recipe import Recipe
from nearstep.types import Experience, Scores


def with_auxiliary_inputs(experience: Experience, scores: Scores, r: Recipe) -> Experience:
    """The experience with rows marked as good and the teacher's log-probs, where they are needed.

    With teacher_in = advantage, A ← A − λ·(log π_old − log π_teacher): the policy gradient of the reverse KL of single
    tokens, without a discount, in units of advantages as they are after whitening.
    """
    config = r.config
    if config.nll_coef > 0:
        experience = replace(experience, good=on_all_rows(good_rows(scores, config), experience.rollout))
    logprobs = teacher_logprobs(experience.rollout, r)
    if logprobs is None:
        return experience
    experience = replace(experience, teacher_logprobs=logprobs)
    if config.teacher_in == "loss":
        return experience
    return replace(experience, advantages=experience.advantages - config.teacher_coef * _gap(experience, logprobs))


def good_rows(scores: Scores, config: AuxiliarySettings) -> Bool[Tensor, " episodes"]:
    """Episodes whose score, or the part of it that nll_reward names, is at least nll_min_score; both as the rewards
    gave them. A part that did not apply makes no row good."""
    looked_at = scores.total if config.nll_reward is None else scores.parts[config.nll_reward]
    return scores.scored & (looked_at >= config.nll_min_score)


def auxiliary_metrics(experience: Experience) -> dict[str, Metric]:
    """The share of good rows, and the distance to the teacher."""
    metrics: dict[str, Metric] = {}
    if experience.good is not None:
        metrics["auxiliary/good_rows"] = Mean.of(experience.good.float())
    if experience.teacher_logprobs is not None:
        metrics["auxiliary/teacher_kl"] = Mean.of(_gap(experience, experience.teacher_logprobs))
    return metrics


def _gap(experience: Experience, logprobs: Tensor) -> Tensor:
    """log π_old − log π_teacher of every action."""
    return wide(experience.old_logprobs) - wide(logprobs)
