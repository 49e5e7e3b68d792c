"""When the critic's start ends, on what and at which rate it trains: the settings."""

from dataclasses import dataclass
from typing import Literal

from nearstep.config.settings import Settings, option


@dataclass(frozen=True, kw_only=True)
class CriticTrainingSettings(Settings):
    """What goes beyond epochs and frequency: weights of targets, an early end of the start, a course, pretraining."""

    vf_reweight: Literal["none", "ratio"] = option(
        "none", "decoupled: weight of a state in the value loss; ratio: π/π_old of its action, π after its own steps"
    )
    vf_reweight_low: float = option(
        0.0, "vf_reweight = ratio: states whose ratio is below this are dropped", at_least=0, at_most=1
    )
    vf_reweight_high: float = option(
        6.0, "vf_reweight = ratio: states whose ratio is above this are dropped", at_least=1
    )
    vf_warmup_until: float | None = option(
        None,
        "val/explained_variance after which the policy starts; vf_warmup_updates are then the most that it waits",
        below=1,
    )
    vf_lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] | None = option(
        None, "course of the critic's learning rate; lr_scheduler_type if not given"
    )
    vf_lr_warmup_steps: int | None = option(
        None, "updates over which the critic's learning rate rises; warmup_steps if not given", at_least=0
    )
    vf_pretrain_rollouts: str | None = option(
        None,
        "train the critic before the first update on the rollouts and scores in this folder, of dump_rollouts",
        is_place=True,
    )
    vf_pretrain_epochs: int = option(1, "vf_pretrain_rollouts: passes over the folder", at_least=1)
    baseline_fallback: Literal["none", "batch_mean"] = option(
        "none",
        "gae: what advantages are measured against in an update in which the critic's values explain nothing of the "
        "returns; batch_mean: the mean return of the batch",
    )


CRITIC_TRAINING = tuple(CriticTrainingSettings.__annotations__)
