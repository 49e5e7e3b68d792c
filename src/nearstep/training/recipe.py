"""Everything a run is made of, assembled once: the loop reads it and changes nothing in it but weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.advantage_rules import Advantage
from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.kl_controllers import KLController
from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import Metrics
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Models
from nearstep.rewards.protocol import RewardModule
from nearstep.rollout.engine import GenerationSettings, RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.clock import Clock
from nearstep.training.optimizers import Learners, LearningRates
from nearstep.training.schedules import CriticSchedule
from nearstep.training.state import State
from nearstep.types import Experience, Prompts, Scores


@runtime_checkable
class PromptBatches(Protocol):
    """Where prompts come from; the data room's PromptSource is one."""

    def batches(self, *, after: int, until: int) -> Iterator[Prompts]:
        """This process's prompts of updates after + 1 … until."""


@dataclass(frozen=True)
class Due:
    """What is due after an update, by the settings or because a callback of any process asked: the same on all."""

    samples: bool
    evaluate: bool
    save: bool
    stop: bool


@runtime_checkable
class LoopReporter(Protocol):
    """Tells of a run. Leaving it as a context closes what it opened, whatever happened; it moves nothing of the run."""

    def __enter__(self) -> "LoopReporter": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    def begin(self, introduction: str) -> None:
        """The run begins; `introduction` is what the user should read first."""

    def begin_update(self) -> None:
        """An update begins."""

    def step(
        self,
        state: State,
        prompts: Prompts,
        experience: Experience,
        scores: Scores,
        metrics: Metrics,
        rates: LearningRates,
    ) -> Due:
        """An update is done, with these metrics of this process, at these learning rates."""

    def samples(self, state: State, rows: Sequence[tuple[str, str, float]]) -> None:
        """What the policy answers now to a few prompts: query, response and score of each."""

    def evaluation(self, state: State, metrics: Metrics) -> None:
        """The result of an evaluation, over all processes."""

    def end(self) -> None:
        """The run is over, and went well."""


@runtime_checkable
class PolicyEvaluator(Protocol):
    """Says how good the policy is on prompts that it is not trained on."""

    def evaluate(self, engine: RolloutEngine, state: State) -> Metrics:
        """Generate from all evaluation prompts; metrics over all processes."""

    def samples(self, engine: RolloutEngine, state: State) -> list[tuple[str, str, float]]:
        """Query, response and score of a few prompts."""


@runtime_checkable
class ModelSaver(Protocol):
    """Writes the models as they are now."""

    def rehearse(self, state: State) -> None:
        """Before the first update: try what could fail at the end."""

    def rescue(self, state: State) -> None:
        """After a failure that left the models whole; no other process takes part."""

    def save(self, state: State) -> None:
        """In the middle of a run."""

    def save_final(self, state: State) -> None:
        """At its end."""

    def export_policy(self, folder: Path, state: State) -> None:
        """The policy alone, as a model folder of its own."""


@dataclass(frozen=True)
class Recipe:
    """The parts of a run: one choice on each axis, and what they all need."""

    config: PPOConfig
    batch: BatchSizes
    tokenizer: PreTrainedTokenizerBase
    models: Models
    prompts: PromptBatches
    engine: RolloutEngine  # for training, evaluation and samples
    generation: GenerationSettings  # of training; evaluation is greedy
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
    report: LoopReporter
    checkpoint: ModelSaver
    evaluator: PolicyEvaluator
    introduction: str  # what the user should read before the run: prompts as the model sees them, choices made

    @property
    def sampling(self) -> Sampling:
        """The distribution that is sampled, of which every log-probability is."""
        return self.generation.sampling
