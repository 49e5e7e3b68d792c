"""What turns gradients into steps: one optimizer and learning-rate schedule for each network."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from nearstep.common.errors import ModelError
from nearstep.config.ppo import PPOConfig
from nearstep.config.shared import OptimizerSettings
from nearstep.models.roles import Models
from nearstep.scale.backend import Backend
from nearstep.scale.shards import lying_alike
from nearstep.scale.stepping import MakesSteppers, Stepper
from nearstep.training.courses import LearningRateCourse
from nearstep.training.eight_bit import eight_bit_adamw
from nearstep.training.master_weights import MasterWeights, is_narrow
from nearstep.training.schedules import Phase

MASTERS_NOTE = "Weights narrower than float32 are trained through float32 masters, which the optimizer keeps."


@dataclass(frozen=True)
class Learner:
    """The weights of one network that learn, and how."""

    parameters: list[nn.Parameter]  # what the optimizer steps: masters in the place of narrow weights
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    masters: MasterWeights
    network: nn.Module
    weights: list[nn.Parameter]  # of the network, those that required gradients when the optimizer was made
    stepper: Stepper | None = None  # what steps them in the place of the optimizer

    @property
    def learning_rate(self) -> float:
        """Step size of the next optimizer step."""
        return float(self.optimizer.param_groups[0]["lr"])

    @contextmanager
    def at_peak(self) -> Iterator[None]:
        """Steps inside have the largest step size of the course, wherever it stands."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group, peak in zip(groups, self.schedule.base_lrs, strict=True):
            group["lr"] = peak
        yield
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate

    def require_same_weights(self, role: str) -> None:
        """Raise ModelError where other weights require gradients than the optimizer steps."""
        now = {id(weight): name for name, weight in self.network.named_parameters() if weight.requires_grad}
        known = {id(weight) for weight in self.weights}
        if now.keys() == known:
            return
        new = [name for number, name in now.items() if number not in known]
        frozen = len(known - now.keys())
        example = f" ({new[0]}, …)" if new else ""
        raise ModelError(
            f"{role}: the weights that train changed after the run was put together: {len(new)} are new{example}, "
            f"{frozen} no longer train, and the optimizer would step the old ones. Pass peft_config, or put adapters "
            "on and freeze weights before the trainer is made"
        )

    def take_gradients(self) -> None:
        """After a backward pass: gradients of narrow weights go to their masters."""
        self.masters.take_gradients()

    def free_gradients(self) -> None:
        """Let go of all gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        self.masters.free_gradients()
        if self.stepper is not None:
            self.stepper.free_gradients()

    def step(self) -> None:
        """One optimizer step."""
        if self.stepper is None:
            self.optimizer.step()
        else:
            self.stepper.step()


@dataclass(frozen=True)
class LearningRates:
    """The step sizes of an update; None where there is no critic."""

    policy: float
    critic: float | None


@dataclass(frozen=True)
class Learners:
    """Policy and critic. Adam's state is by weight, so two optimizers with one rate are one over both."""

    policy: Learner
    critic: Learner | None

    def require_same_weights(self) -> None:
        """Raise ModelError where a network trains other weights than when its optimizer was made."""
        self.policy.require_same_weights("model")
        if self.critic is not None:
            self.critic.require_same_weights("value_model")

    def of(self, phase: Phase) -> dict[str, Learner]:
        """The networks that take a step in a phase, as metrics name them."""
        learners = {"policy": self.policy} if phase.policy else {}
        if phase.critic:
            assert self.critic is not None, "a phase that trains the critic needs one"
            learners["value"] = self.critic
        return learners

    def free_gradients(self) -> None:
        """Give their memory to the next rollout."""
        for learner in (self.policy, self.critic):
            if learner is not None:
                learner.free_gradients()

    def notes(self) -> list[str]:
        """Notes for the user before the run."""
        masters = any(learner is not None and learner.masters.masters for learner in (self.policy, self.critic))
        return [MASTERS_NOTE] if masters else []

    def end_update(self) -> LearningRates:
        """Move both learning rates on, once per update and not per optimizer step; returns those of the update."""
        rates = LearningRates(self.policy.learning_rate, None if self.critic is None else self.critic.learning_rate)
        with warnings.catch_warnings():
            # torch warns where no step was taken yet; here a network may sit out an update, and its rate moves on.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.policy.schedule.step()
            if self.critic is not None:
                self.critic.schedule.step()
        return rates


def make_learners(
    models: Models, config: PPOConfig, critic_learning_rate: float, updates: int, backend: Backend | None = None
) -> Learners:
    """A learner for each network. Of a critic on the policy's trunk it has the head: the trunk is the policy's."""
    policy = make_learner(models.policy.model, config, config.learning_rate, updates, backend=backend)
    if models.critic is None:
        return Learners(policy, None)
    network = models.critic.members[0].head if models.one_trunk else models.critic.model
    course = LearningRateCourse.of_critic(config)
    return Learners(policy, make_learner(network, config, critic_learning_rate, updates, course, backend))


def make_learner(
    model: nn.Module,
    config: PPOConfig,
    learning_rate: float,
    updates: int,
    course: LearningRateCourse | None = None,
    backend: Backend | None = None,
) -> Learner:
    """Optimizer and schedule over the weights of `model` that require gradients; without a course the policy's."""
    course = course or LearningRateCourse.of_policy(config)
    weights = trained_weights(model)
    masters, stepper = MasterWeights(), None
    if isinstance(backend, MakesSteppers):
        optimizer = make_optimizer(weights, config, learning_rate)
        stepper = backend.stepper(model, weights, optimizer)
    if stepper is None:
        masters = masters_of(model, config)
        optimizer = make_optimizer(masters.instead_of_narrow(weights), config, learning_rate)
        masters.attach(optimizer)
    parameters = masters.instead_of_narrow(weights) if stepper is None else stepper.parameters
    schedule = get_scheduler(course.kind, optimizer, num_warmup_steps=course.warmup_steps, num_training_steps=updates)
    return Learner(parameters, optimizer, schedule, masters, model, weights, stepper)


def trained_weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of `model` that require gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def masters_of(model: nn.Module, config: OptimizerSettings) -> MasterWeights:
    """Masters of the narrow weights that are trained; none, and a warning, with master_weights = false."""
    weights = trained_weights(model)
    if config.master_weights:
        return MasterWeights.of(weights)
    if any(is_narrow(weight) for weight in weights):
        warnings.warn(
            "master_weights = false: the optimizer steps weights narrower than float32 themselves. In bfloat16 a step "
            "smaller than 1/512 of a weight is lost, so at small learning rates most weights never change "
            f"(learning_rate = {config.learning_rate:g}).",
            stacklevel=2,
        )
    return MasterWeights()


def make_optimizer(
    parameters: list[nn.Parameter], config: OptimizerSettings, learning_rate: float
) -> torch.optim.Optimizer:
    """The optimizer that the settings name; weights that lie over processes in other ways are groups of their own.

    Raises ConfigError for one of a package that is missing or cannot step.
    """
    if config.optim == "adamw_8bit":
        return eight_bit_adamw(parameters, config, learning_rate)
    runs = lying_alike(parameters)
    groups = parameters if len(runs) == 1 else [{"params": run} for run in runs]
    if config.optim == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
        fused=True if config.optim == "adamw_torch_fused" else None,
    )
