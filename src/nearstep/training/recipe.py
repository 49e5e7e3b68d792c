"""Everything a run is made of, assembled once: the loop reads it and changes nothing in it but weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.advantage_rules import Advantage
from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.kl_controllers import KLController
from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.checkpoint.export import Checkpoint
from nearstep.config.ppo import PPOConfig
from nearstep.evaluation.evaluator import Evaluation
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Models
from nearstep.reports.run_report import Report
from nearstep.rewards.protocol import RewardModule
from nearstep.rollout.engine import RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.clock import Clock
from nearstep.training.optimizers import Learners
from nearstep.training.schedules import CriticSchedule
from nearstep.types import Prompts


@runtime_checkable
class PromptBatches(Protocol):
    """Where prompts come from; the data room's PromptSource is one."""

    def batches(self, *, after: int, until: int) -> Iterator[Prompts]:
        """This process's prompts of updates after + 1 … until."""


@dataclass(frozen=True)
class Recipe:
    """The parts of a run: one choice on each axis, and what they all need."""

    config: PPOConfig
    batch: BatchSizes
    tokenizer: PreTrainedTokenizerBase
    models: Models
    prompts: PromptBatches
    engine: RolloutEngine
    sampling: Sampling
    rewards: RewardModule
    trust_region: TrustRegion
    ratio_limit: float | None  # largest importance weight of a token
    advantage: Advantage
    whiten_advantages: bool
    kl_controller: KLController
    loss_aggregation: LossAggregation
    schedule: CriticSchedule
    learners: Learners
    backend: Backend
    clock: Clock
    report: Report
    checkpoint: Checkpoint
    evaluate: Callable[[], Evaluation]
    introduction: str  # what the user should read before the run: prompts as the model sees them, choices made
