"""Everything a run is made of, assembled once: the loop reads it and changes nothing in it but weights."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.config import PPOConfig
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Models
from nearstep.rollout.engine import RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.checkpoint import Checkpoint
from nearstep.training.clock import Clock
from nearstep.training.evaluation import Evaluation
from nearstep.training.judges import Judges
from nearstep.training.optimizers import Learners
from nearstep.training.report import Report
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
    rewards: Judges
    trust_region: TrustRegion
    ratio_cap: float | None  # largest importance weight of a token
    schedule: CriticSchedule
    learners: Learners
    backend: Backend
    clock: Clock
    report: Report
    checkpoint: Checkpoint
    evaluate: Callable[[], Evaluation]
    introduction: str  # what the user should read before the run: prompts as the model sees them, choices made
