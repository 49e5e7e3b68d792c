"""How far a run has come, and what it has learned beside weights."""

from dataclasses import dataclass, field

import torch

from nearstep.algorithm.kl import adapted_kl_coef, kl_estimate
from nearstep.algorithm.statistics import Moments
from nearstep.config.ppo import PPOConfig
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.types import Experience, Scores


@dataclass(frozen=True)
class Steps:
    """Optimizer steps that were taken."""

    policy: int = 0
    critic: int = 0

    def __add__(self, other: "Steps") -> "Steps":
        return Steps(self.policy + other.policy, self.critic + other.critic)


@dataclass
class State:
    """The position of a run. Every random stream derives from it and the seed, so it is all that a resumed run needs
    beside weights and optimizers."""

    update: int = 0  # number of the update that runs or ran last, from 1
    episodes: int = 0  # played over all processes
    epoch: float = 0.0  # passes over the prompts; of a stream the share of the run
    steps: Steps = field(default_factory=Steps)
    kl_scale: float = 1.0  # what kl_target has made of kl_coef: the coefficient in use is their product
    score_moments: Moments = field(default_factory=Moments)  # of all scores so far, over all processes

    def begin_update(self) -> None:
        """The next update begins."""
        self.update += 1

    def see(self, scores: Scores, config: PPOConfig, backend: Backend) -> None:
        """Take the scores of an update into the moments that `normalize_scores` divides by."""
        if config.normalize_scores != "none":
            self.score_moments += Moments.of(scores.total[scores.scored], backend.add_up)

    def end_update(self, batch: BatchSizes, steps: Steps) -> None:
        """The update is done, with these optimizer steps."""
        self.steps += steps
        self.episodes += batch.batch
        self.epoch = batch.passes(self.update)

    def adapt_kl(self, experience: Experience, config: PPOConfig, backend: Backend) -> None:
        """Move the KL coefficient towards what keeps `objective/kl` at kl_target."""
        if config.kl_target is None:
            return
        rollout = experience.rollout
        assert experience.ref_logprobs is not None, "kl_target needs a KL penalty, and that a reference"
        kl = kl_estimate(rollout.logprobs, experience.ref_logprobs, config.kl_estimator)
        total, rows = backend.add_up(torch.stack([kl.double().sum(), kl.new_tensor(len(rollout)).double()])).tolist()
        self.kl_scale = adapted_kl_coef(
            self.kl_scale, total / max(rows, 1), target=config.kl_target, horizon=config.kl_horizon, episodes=int(rows)
        )
