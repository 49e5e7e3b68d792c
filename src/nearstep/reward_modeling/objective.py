"""What one forward pass in training does: the rewards of a batch, their loss, and what is worth watching."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearstep.algorithm.preferences import centring_loss, preference_loss, squared_error
from nearstep.common.errors import TrainingError
from nearstep.metrics import Max, Mean, Metrics
from nearstep.models.reward_model import RewardReader
from nearstep.reward_modeling.examples import Comparison, Grade, GradeBatch, PairBatch
from nearstep.reward_modeling.scale import Scale

Batch: TypeAlias = PairBatch | GradeBatch
Inputs: TypeAlias = dict[str, Batch | Tensor]
ExampleT = TypeVar("ExampleT", contravariant=True)


@dataclass(frozen=True)
class ObjectiveValues:
    """The loss of every pair or text, the rewards that evaluation keeps, and sums for the log."""

    losses: Float[Tensor, " items"]
    rewards: Float[Tensor, "items *two"]
    metrics: Metrics


@runtime_checkable
class Objective(Protocol[ExampleT]):
    """What rewards are held against."""

    @property
    def scale(self) -> Scale:
        """From what is learnt to rewards in the user's units."""

    def inputs(self, examples: Sequence[ExampleT]) -> Inputs:
        """Some examples as the keyword arguments of a forward pass; `labels` has one number per pair or text."""

    def evaluate(self, rewards: Float[Tensor, " rows"], batch: Batch) -> ObjectiveValues:
        """Loss and metrics of the rewards of a batch against its labels."""


@dataclass(frozen=True)
class Pairwise:
    """The better row of a pair should get the higher reward."""

    label_smoothing: float = 0.0
    centring: float = 0.0  # weight of the centring loss
    margins: float = 1.0  # weight of the margins

    @property
    def scale(self) -> Scale:
        """See Objective.scale; differences of pairs have no scale."""
        return Scale()

    def inputs(self, examples: Sequence[Comparison]) -> Inputs:
        """See Objective.inputs; labels are the preferences."""
        batch = PairBatch.of(examples)
        return {"batch": batch, "labels": batch.preferences}

    def evaluate(self, rewards: Float[Tensor, " rows"], batch: Batch) -> ObjectiveValues:
        """See Objective.evaluate; the rewards that it keeps are those of the better and of the worse row."""
        assert isinstance(batch, PairBatch)
        device = rewards.device
        chosen, rejected = rewards[batch.better.to(device)], rewards[batch.worse.to(device)]
        preferences = batch.preferences.to(device)
        losses = preference_loss(
            chosen,
            rejected,
            preferences=preferences,
            margins=self.margins * batch.margins.to(device),
            label_smoothing=self.label_smoothing,
        )
        if self.centring:
            losses = losses + self.centring * centring_loss(chosen, rejected)
        clear = preferences != 0.5
        gap = (chosen - rejected).detach()[clear]
        watched = {"accuracy": Mean.of((gap > 0).double() + 0.5 * (gap == 0)), "margin": Mean.of(gap)}
        return ObjectiveValues(losses, torch.stack([chosen, rejected], dim=1), Metrics({**watched, **_spread(rewards)}))


@dataclass(frozen=True)
class Regression:
    """Every row has a target reward. What is learnt is (target − mean) / deviation."""

    mean: float = 0.0
    deviation: float = 1.0

    @property
    def scale(self) -> Scale:
        """See Objective.scale."""
        return Scale(self.deviation, self.mean)

    def inputs(self, examples: Sequence[Grade]) -> Inputs:
        """See Objective.inputs; labels are the targets as they are learnt."""
        batch = GradeBatch.of(examples)
        targets = (batch.targets - self.mean) / self.deviation
        return {"batch": GradeBatch(batch.groups, targets), "labels": targets}

    def evaluate(self, rewards: Float[Tensor, " rows"], batch: Batch) -> ObjectiveValues:
        """See Objective.evaluate."""
        assert isinstance(batch, GradeBatch)
        return ObjectiveValues(
            squared_error(rewards, batch.targets.to(rewards.device)), rewards, Metrics(_spread(rewards))
        )


def _spread(rewards: Tensor) -> dict[str, Mean | Max]:
    """Under TRL's names; the minimum is kept as the maximum of what is left after a change of sign."""
    return {"mean_reward": Mean.of(rewards), "max_reward": Max.of(rewards), "min_reward": Max.of(-rewards)}


class LearningModel(nn.Module):
    """The model that transformers' Trainer sees: its forward pass gives a loss, so that the trainer needs no more.

    `num_items_in_batch` counts the pairs or texts of an optimizer step over all its passes and processes: the sum of
    losses is divided by it, so no split changes a gradient.
    """

    accepts_loss_kwargs = True  # makes the trainer pass num_items_in_batch

    def __init__(self, model: nn.Module, reader: RewardReader, objective: Objective[Any]) -> None:
        super().__init__()
        self.model = model
        self._reader = reader
        self._objective = objective
        self._metrics = Metrics()
        # What the trainer asks of a model whose checkpoint lacks weights: that they are meant to be missing.
        self._keys_to_ignore_on_save = [name for name, each in self.named_parameters() if not each.requires_grad]
        self.register_state_dict_post_hook(_leave_out_frozen_weights)  # type: ignore[no-untyped-call]

    def forward(
        self, batch: Batch, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """Loss and rewards of a batch. Raises TrainingError for a loss that is not finite."""
        outcome = self._objective.evaluate(self._reader.rewards(batch.groups), batch)
        loss = outcome.losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)
        if not loss.isfinite():
            raise TrainingError(
                f"the loss is {loss.item()}: the weights or the texts of this step are beyond what can be computed. "
                "Lower learning_rate; with bf16 or dtype = bfloat16 try float32. Nothing was saved."
            )
        if self.training:
            self._metrics = self._metrics + outcome.metrics.cpu()
        return {"loss": loss, "rewards": outcome.rewards.float()}

    def train(self, mode: bool = True) -> "LearningModel":
        """Training mode concerns this wrapper alone: inside, dropout stays off as the reader has left it."""
        self.training = mode
        return self

    def take_metrics(self) -> Metrics:
        """What was watched since the last call."""
        taken, self._metrics = self._metrics, Metrics()
        return taken

    def tie_weights(self) -> None:
        """The trainer calls this after loading a checkpoint without the frozen weights; none are tied."""


def _leave_out_frozen_weights(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    """A checkpoint of adapters need not hold the model under them."""
    for name, weights in module.named_parameters():
        if not weights.requires_grad:
            state.pop(prefix + name, None)
