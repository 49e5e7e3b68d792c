"""How far a run has come, and what it has learned beside weights."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nearstep.algorithm.kl import KLEstimator
from nearstep.algorithm.kl_controllers import KLController, MeasuredKL
from nearstep.algorithm.statistics import Moments
from nearstep.common.errors import TrainingError
from nearstep.common.telling import tell
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import ExplainedVariance, Metrics
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.first_answers import FirstAnswers
from nearstep.training.token_kl import token_kl
from nearstep.types import Experience, Scores

NO_SIGNAL_UPDATES = 5
EXPLAINED = "val/explained_variance"


@dataclass(frozen=True)
class Steps:
    """Optimizer steps that were taken."""

    policy: int = 0
    critic: int = 0
    skipped: int = 0  # left out, since their gradient was not finite

    def __add__(self, other: "Steps") -> "Steps":
        return Steps(self.policy + other.policy, self.critic + other.critic, self.skipped + other.skipped)


@dataclass
class State:
    """The position of a run. Every random stream derives from it and the seed, so it is all that a resumed run needs
    beside weights and optimizers."""

    update: int = 0  # number of the update that runs or ran last, from 1
    episodes: int = 0  # generated over all processes
    epoch: float = 0.0  # passes over the prompts; of a stream the share of the run
    steps: Steps = field(default_factory=Steps)
    flat_in_a_row: int = 0  # updates up to now in each of which all scores were alike
    broken_in_a_row: int = 0  # updates up to now in each of which a step was left out
    kl_coef: float | None = None  # weight of the KL penalty in the next update; None while no update has set it
    score_moments: Moments = field(default_factory=Moments)  # of all scores so far, over all processes
    critic_is_ready: bool = False  # it has come to explain vf_warmup_until of the returns: its warm-up is over
    critic_is_pretrained: bool = False  # on vf_pretrain_rollouts
    part_moments: dict[str, Moments] = field(default_factory=dict)  # of each reward's, with normalize_scores_apart
    selection: Mapping[str, Any] | None = None  # what sampler and gate know; None where they remember nothing
    # Tensors, of which a checkpoint makes a file of their own; None before update 1, and where nothing is asked later.
    first_answers: FirstAnswers | None = field(default=None, repr=False, compare=False)

    before: "State | None" = field(default=None, repr=False, compare=False)  # while an update runs

    def begin_update(self) -> None:
        """The next update begins."""
        self.before = replace(self)
        self.update += 1

    def take_back_unfinished(self) -> None:
        """Be as before the update that was broken off, if one was."""
        if self.before is not None:
            vars(self).update(vars(self.before))

    def update_score_moments(self, scores: Scores, config: PPOConfig, backend: Backend) -> None:
        """Take the scores of an update into the moments that `normalize_scores` divides by."""
        if config.normalize_scores == "none":
            return
        if config.normalize_scores_apart:
            names = sorted({name for there in backend.gather([*scores.parts]) for name in there})
            nothing = torch.full_like(scores.total, torch.nan)  # of a process that has no row of this round
            parts = {name: scores.parts.get(name, nothing) for name in names}
            found = {
                name: Moments.of(part[scores.scored & ~part.isnan()], backend.add_up) for name, part in parts.items()
            }
            self.part_moments = {name: self.part_moments.get(name, Moments()) + each for name, each in found.items()}
        else:
            self.score_moments += Moments.of(scores.total[scores.scored], backend.add_up)

    def watch_spread(self, scores: Scores, backend: Backend) -> None:
        """Warn once where scores have been alike for some updates: then rewards teach nothing."""
        scored = scores.total[scores.scored]
        ends = (float(scored.min()), float(scored.max())) if len(scored) else (math.inf, -math.inf)
        lowest, highest = zip(*backend.gather(ends), strict=True)
        self.flat_in_a_row = self.flat_in_a_row + 1 if min(lowest) >= max(highest) else 0
        if self.flat_in_a_row == NO_SIGNAL_UPDATES and backend.is_main:
            warnings.warn(
                f"update {self.update}: all scores of the last {NO_SIGNAL_UPDATES} updates were alike in each. There "
                "is nothing to learn from such rewards: check the reward, or take prompts on which answers differ",
                stacklevel=2,
            )

    def end_update(self, batch: BatchSizes, steps: Steps, max_broken: int, episodes: int | None = None) -> None:
        """The update is done, with these optimizer steps; it generated so many `episodes`, a batch if not given.

        Raises TrainingError where steps were left out in `max_broken` updates in a row.
        """
        self.steps += steps
        self.broken_in_a_row = self.broken_in_a_row + 1 if steps.skipped else 0
        if self.broken_in_a_row >= max_broken:
            raise TrainingError(
                f"update {self.update}: the gradient was not finite in {self.broken_in_a_row} updates in a row "
                "(max_broken_updates). The warnings above say what was not. Look at the last rows of rollouts.jsonl, "
                "lower learning_rate, or check the reward"
            )
        self.episodes += batch.batch if episodes is None else episodes
        self.epoch = batch.epoch(self.update, self.prompts(batch))
        self.before = None

    def prompts(self, batch: BatchSizes) -> int:
        """Prompts that were drawn over all processes."""
        return -(-self.episodes // (batch.batch // batch.prompts))

    def watch_critic(self, experience: Experience, scores: Scores, config: PPOConfig, backend: Backend) -> None:
        """End the warm-up of the critic where its values, before the steps of this update, explain enough."""
        wanted = config.vf_warmup_until
        if wanted is None or self.critic_is_ready or self.update >= config.vf_warmup_updates:
            return
        counted = scores.scored.repeat_interleave(experience.rollout.by_episode().action_counts)
        here = ExplainedVariance.of(experience.returns[counted], experience.values[counted]).cpu()
        explained = sum(backend.gather(Metrics({EXPLAINED: here})), start=Metrics()).numbers().get(EXPLAINED)
        self.critic_is_ready = explained is not None and explained >= wanted
        if self.critic_is_ready:
            tell(f"the critic explains {explained:.3f} of the returns' variance: the policy trains from update "
                 f"{self.update + 1} on")  # fmt: skip

    def update_kl_coef(
        self,
        experience: Experience,
        controller: KLController,
        estimator: KLEstimator,
        batch: BatchSizes,
        backend: Backend,
    ) -> None:
        """Let the controller choose the coefficient of the next update by the KL of this one.

        Raises TrainingError for a coefficient that is none.
        """
        rollout, kl = experience.rollout.by_episode(), token_kl(experience, estimator)
        if kl is None:
            return
        total, rows = backend.add_up(torch.stack([kl.double().sum(), kl.new_tensor(len(rollout)).double()])).tolist()
        if not math.isfinite(total):
            return  # its steps were left out; there is nothing to steer by
        measured = MeasuredKL(total / max(rows, 1), int(rows), self.update, batch.updates)
        self.kl_coef = controller.next(experience.kl_coef, measured)
        if not (math.isfinite(self.kl_coef) and self.kl_coef >= 0):
            raise TrainingError(
                f"update {self.update}: {type(controller).__name__} makes the KL coefficient {self.kl_coef} after "
                f"{experience.kl_coef:g}, with a KL of {measured.kl:g}; it must be a number from 0 on"
            )
