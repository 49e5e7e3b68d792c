"""Everything a run is made of, assembled once: the loop reads it and changes nothing in it but weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from nearstep.algorithm.advantage_rules import Advantage
from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.correction import CorrectionRule
from nearstep.algorithm.kl_controllers import KLController
from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.config.ppo import PPOConfig
from nearstep.metrics import Metrics
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Models
from nearstep.rewards.protocol import RewardModule
from nearstep.rollout.engine import GenerationSettings, RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.auxiliary import Auxiliary
from nearstep.training.batches import BatchSizes
from nearstep.training.clock import Clock
from nearstep.training.critic_text import CriticText
from nearstep.training.evaluated import Evaluation, Sample
from nearstep.training.interruption import Interruption
from nearstep.training.joining import ScoredRows
from nearstep.training.optimizers import Learners, LearningRates
from nearstep.training.schedules import CriticSchedule
from nearstep.training.selection import Selection
from nearstep.training.shared_ahead import SampledAhead
from nearstep.training.state import State
from nearstep.types import Experience, Prompts, Scores


@runtime_checkable
class PromptBatches(Protocol):
    """Where prompts come from; the data room's PromptSource is one."""

    def batches(self, *, after: int, until: int, played: int | None = None) -> Iterator[Prompts]:
        """This process's prompts of updates after + 1 … until; `played` prompts were drawn before, over all processes,
        those of `after` batches if not given."""

    def more(self, places: Sequence[int]) -> Prompts:
        """New prompts for these places of the batch that runs (prompts from 0, ascending): this process's rows."""

    def numbers(self, episodes: Sequence[int]) -> list[int]:
        """Of episodes of the update that runs, played by this process: by which numbers `again` finds their prompts."""

    def again(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """The prompts of these numbers once more, one row each; asked before `batches`."""

    def seen(self, means: Sequence[float]) -> None:
        """The mean score of each prompt that was drawn last, over all processes; NaN where none was scored."""


@dataclass(frozen=True)
class Due:
    """What is due after an update, by the settings or because a callback of any process asked: the same on all."""

    samples: bool = False
    evaluate: bool = False
    save: bool = False
    stop: bool = False
    best: bool = False  # nothing before was as good


@runtime_checkable
class LoopReporter(Protocol):
    """Tells of a run. Leaving it as a context closes what it opened, whatever happened; it moves nothing of the run."""

    def __enter__(self) -> "LoopReporter": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    @property
    def history(self) -> Sequence[Mapping[str, int | float]]:
        """The metrics of every update and evaluation that was logged, with its update, episode and epoch."""

    def begin(self, introduction: str, state: State) -> None:
        """The run begins, or goes on after the update of `state`; `introduction` is what the user should read first."""

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

    def dropped(self, state: State, rows: Sequence[ScoredRows]) -> None:
        """Rows of this process that an update sampled and whose place others have taken; every process calls it."""

    def samples(self, state: State, rows: Sequence[Sample]) -> None:
        """What the policy answers now to a few prompts."""

    def evaluation(self, state: State, evaluation: Evaluation, due: Due) -> Due:
        """The result of an evaluation, over all processes; returns what is due now: it may be the best, or the end."""

    def end(self) -> None:
        """The run is over, and went well."""


@runtime_checkable
class PolicyEvaluator(Protocol):
    """Says how good the policy is on prompts that it is not trained on."""

    @property
    def has_prompts(self) -> bool:
        """Whether there is anything to evaluate on."""

    def begin(self, engine: RolloutEngine, state: State) -> Evaluation | None:
        """Before the first update: know what the policy answers now; None where that is known already."""

    def evaluate(self, engine: RolloutEngine, state: State) -> Evaluation:
        """Generate from all evaluation prompts, over all processes."""

    def samples(self, engine: RolloutEngine, state: State) -> list[Sample]:
        """Responses to a few prompts."""

    def close(self) -> None:
        """End what is kept running between calls."""


@runtime_checkable
class ModelSaver(Protocol):
    """Writes the run as it is now, and restores it."""

    def go_on_from(self, place: str | Path | bool) -> None:
        """Choose the checkpoint that `load` will load."""

    def load(self, state: State) -> None:
        """Put the run where its checkpoint stands; nothing for a new run."""

    def rehearse(self, state: State) -> None:
        """Before the first update: try what could fail at the end."""

    def rescue(self, state: State) -> bool:
        """After a failure: write the models, if they are whole; no other process takes part. Whether it was done."""

    def step(self, state: State, due: Due, *, best: bool) -> None:
        """An update is done: save it if that is due, or if it is the best and such are kept."""

    def save_unsaved(self, state: State) -> None:
        """Save the run where it stands, unless that was done."""

    def save_final(self, state: State) -> None:
        """At its end."""

    def export_policy(self, folder: Path, state: State) -> None:
        """The policy alone, as a model folder of its own."""

    def close(self) -> None:
        """Wait until what is being written lies on the disk."""


@dataclass(frozen=True)
class Recipe:
    """The parts of a run: one choice on each axis, and what they all need."""

    config: PPOConfig
    batch: BatchSizes
    tokenizer: PreTrainedTokenizerBase
    models: Models
    prompts: PromptBatches
    selection: Selection  # which prompts are drawn, and which finished groups train
    engine: RolloutEngine  # for training, evaluation and samples
    generation: GenerationSettings  # of training; evaluation has its own
    rewards: RewardModule
    trust_region: TrustRegion
    ratio_limit: float | None  # largest ratio that a token's loss counts with
    correction: CorrectionRule  # for an engine that is not quite the trainer
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
    interruption: Interruption
    evaluator: PolicyEvaluator
    introduction: str  # what the user should read before the run: prompts as the model sees them, choices made
    critic_text: CriticText | None = None  # what the critic reads and the policy does not
    auxiliary: Auxiliary = field(default_factory=Auxiliary)  # what the policy minimises beside PPO's loss
    ahead: SampledAhead | None = None  # samples beside the update, in the place of `prompts`; None in turn with it

    @property
    def sampling(self) -> Sampling:
        """The distribution that is sampled, of which every log-probability is."""
        return self.generation.sampling
