"""Terms of the policy's loss beside PPO's: each a sum over actions, divided by a count of its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from nearstep.algorithm.kl import kl_estimate
from nearstep.common.errors import TrainingError, shorten
from nearstep.metrics import Mean, Metrics
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.scale.backend import Backend
from nearstep.training.ptx import Pretraining
from nearstep.types import Experience


@runtime_checkable
class AuxiliaryLoss(Protocol):
    """A term of the policy's loss, coef · Σ / count. Any frozen dataclass with these members is one.

    The sum runs over a micro-batch, the count over the minibatch and all processes: no split changes a gradient.
    """

    @property
    def name(self) -> str:
        """Its mean is logged as auxiliary/<name>, without coef."""

    @property
    def coef(self) -> float:
        """Its weight beside PPO's loss, which is divided as the loss aggregation says."""

    @property
    def needs_log_normalizers(self) -> bool:
        """Whether `loss` reads `now.log_normalizers`, which are not computed otherwise."""

    def count(self, experience: Experience) -> Shaped[Tensor, ""]:
        """How much of these rows the loss is a mean over, 0 or more. Adds up over rows; depends on nothing else."""

    def loss(self, micro: Experience, now: ActionLogprobs) -> tuple[Float[Tensor, ""], Metrics]:
        """The sum over these rows, and what else is to be logged; `now` has one entry for each action.

        Adds up over rows. Gradients flow through `now` alone.
        """


@dataclass(frozen=True)
class GoodRowsNLL:
    """−log π of the tokens of good rows, the mean over all of them (2504.05118, "Positive Example LM Loss").

    Good rows are those of `Experience.good`. π is the distribution that is sampled.
    """

    coef: float
    name: str = "nll"
    needs_log_normalizers: bool = False

    def count(self, experience: Experience) -> Shaped[Tensor, ""]:
        """Tokens of good rows."""
        return _good_actions(experience).sum()

    def loss(self, micro: Experience, now: ActionLogprobs) -> tuple[Float[Tensor, ""], Metrics]:
        """Σ −log π over them."""
        return -now.sampled[_good_actions(micro)].sum(), Metrics()


def _good_actions(experience: Experience) -> Bool[Tensor, " actions"]:
    assert experience.good is not None, "rows are marked where this loss is in use"
    return experience.of_actions(experience.good)


@dataclass(frozen=True)
class ZLoss:
    """(log Σ exp l)² of the policy's logits l at every action: keeps them from drifting (2204.02311, section 5).

    The logits are the model's own, after its scale and soft cap and before temperature and cuts, as in pretraining.
    """

    coef: float
    name: str = "z_loss"
    needs_log_normalizers: bool = True

    def count(self, experience: Experience) -> Shaped[Tensor, ""]:
        """Actions."""
        return _actions(experience)

    def loss(self, micro: Experience, now: ActionLogprobs) -> tuple[Float[Tensor, ""], Metrics]:
        """Σ (log Σ exp l)²."""
        assert now.log_normalizers is not None, "they are asked for"
        return now.log_normalizers.square().sum(), Metrics()


@dataclass(frozen=True)
class TeacherKL:
    """½ (log π − log π_teacher)² of every action (k2), whose gradient on the policy's own samples is that of the
    reverse KL, KL(π ‖ π_teacher)."""

    coef: float
    name: str = "teacher_k2"
    needs_log_normalizers: bool = False

    def count(self, experience: Experience) -> Shaped[Tensor, ""]:
        """Actions."""
        return _actions(experience)

    def loss(self, micro: Experience, now: ActionLogprobs) -> tuple[Float[Tensor, ""], Metrics]:
        """Σ k2."""
        assert micro.teacher_logprobs is not None, "they are computed where there is a teacher"
        return kl_estimate(now.sampled, micro.teacher_logprobs, "k2").sum(), Metrics()


def _actions(experience: Experience) -> Shaped[Tensor, ""]:
    return torch.tensor(len(experience.old_logprobs), device=experience.scores.device)


@dataclass(frozen=True)
class Auxiliary:
    """All that the policy minimises beside PPO's loss; nothing by default."""

    losses: tuple[AuxiliaryLoss, ...] = ()
    pretraining: Pretraining | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)  # what the user should know before the run

    @property
    def log_normalizers(self) -> bool:
        """Whether a loss reads them."""
        return any(each.needs_log_normalizers for each in self.losses)


def auxiliary_divisors(minibatch: Experience, losses: Sequence[AuxiliaryLoss], backend: Backend) -> tuple[Tensor, ...]:
    """What each sum is divided by: its count over all processes, or 1 where nothing is counted.

    Raises TrainingError for a count that is none.
    """
    if not losses:
        return ()
    counts = [torch.as_tensor(each.count(minibatch)).detach().double().to(minibatch.scores.device) for each in losses]
    totals = backend.add_up(torch.stack(counts))
    for each, total in zip(losses, totals.tolist(), strict=True):
        problem = count_problem(total)
        if problem is not None:
            raise TrainingError(f"auxiliary loss {_called(each)} on a minibatch of this run: {problem}")
    return totals.where(totals > 0, 1).unbind()


def auxiliary_terms(
    micro: Experience, now: ActionLogprobs, losses: Sequence[AuxiliaryLoss], divisors: Sequence[Tensor]
) -> tuple[list[Tensor], Metrics]:
    """What each loss adds to the loss of a minibatch, and their means. Raises TrainingError for a sum that is none."""
    terms: list[Tensor] = []
    metrics = Metrics()
    for each, divisor in zip(losses, divisors, strict=True):
        found = each.loss(micro, now)
        problem = sum_problem(found)
        if problem is not None:
            raise TrainingError(f"auxiliary loss {_called(each)} on a micro-batch of this run: {problem}")
        total, more = found
        terms.append(each.coef * total / divisor.to(total.dtype))
        mean = Mean(total.detach().double(), torch.as_tensor(each.count(micro)).detach().double())
        metrics += Metrics({f"auxiliary/{each.name}": mean}) + more
    return terms, metrics


def count_problem(count: float) -> str | None:
    """What is wrong with how much a loss counts."""
    fits = math.isfinite(count) and count >= 0
    return None if fits else f"count is {count:g}; it is a finite number from 0 on, of rows or tokens"


def sum_problem(found: object) -> str | None:
    """What is wrong with what `loss` returned. Reads no element, so a GPU is not waited for."""
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Metrics):
        return f"loss returned {shorten(type(found).__name__)}; return the sum and Metrics(), nearstep's, as a pair"
    total = found[0]
    if not isinstance(total, Tensor) or not total.is_floating_point() or total.dim() > 0:
        shape = f"shape {list(total.shape)}" if isinstance(total, Tensor) else type(total).__name__
        return f"the sum has {shape}; return one float, as .sum() gives it"
    return None


def _called(loss: AuxiliaryLoss) -> str:
    """Its name, and the class that it is of."""
    return f"{loss.name} ({type(loss).__name__})"
