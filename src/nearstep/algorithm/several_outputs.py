"""Heads of the critic whose value is the mean of its outputs: quantiles of the return, or members of an ensemble."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.precision import wide
from nearstep.algorithm.value_heads import ValueTargets


@runtime_checkable
class HasMembers(Protocol):
    """A head whose value is the mean of several, which may disagree."""

    def by_member(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, "states members"]:
        """What each of them says of every state, in float32 at least."""


@dataclass(frozen=True)
class QuantileHead:
    """Quantiles of the return at the middles of equal shares, learned by quantile regression with a Huber loss; the
    value is their mean (QR-DQN, 1710.10044, eq. 9 and 10).

    Their mean is the mean of the returns only where `huber` is small beside their spread: with `huber` = 1, returns of
    0 and of 1 (one in ten) give 0.18, with 0 they give 0.1.
    """

    quantiles: int = 32
    huber: float = 0.0  # error up to which the loss is quadratic; 0 is plain quantile regression
    starts_at_zero: ClassVar[bool] = True
    value_range: ClassVar[None] = None

    @property
    def outputs(self) -> int:
        """One for each quantile."""
        return self.quantiles

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """The mean of the quantiles."""
        return mean(outputs)

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """Mean over quantiles of |τ − 1{u < 0}|·H(u), u = R − quantile; H(u) is u² / (2·huber) up to huber, and
        |u| − huber / 2 beyond."""
        quantiles = wide(outputs)
        errors = learned.targets[:, None] - quantiles
        levels = (torch.arange(self.quantiles, dtype=errors.dtype, device=errors.device) + 0.5) / self.quantiles
        size = errors.abs()
        if self.huber > 0:
            size = torch.where(size <= self.huber, errors.square() / (2 * self.huber), size - self.huber / 2)
        return ((levels - (errors.detach() < 0).to(errors.dtype)).abs() * size).mean(-1)

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """The spread of the quantiles."""
        return {"quantile_std": spread(outputs)}


@dataclass(frozen=True)
class EnsembleHead:
    """Several linear heads on one trunk, each trained on other responses of every prompt; the value is their mean.

    After AsyPPO (2510.01656), which has models of their own (critic_models) where this has heads on one trunk.
    """

    members: int = 2
    starts_at_zero: ClassVar[bool] = False
    value_range: ClassVar[None] = None

    @property
    def outputs(self) -> int:
        """One for each member."""
        return self.members

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """The mean of the members."""
        return mean(outputs)

    def by_member(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, "states members"]:
        """The outputs."""
        return wide(outputs)

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """½·(V − R)² of the one member that learns from the state: response number modulo members."""
        member = (learned.samples % self.members)[:, None]
        return (wide(outputs).gather(-1, member).squeeze(-1) - learned.targets).square() / 2

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """How far the members disagree."""
        return {"ensemble_std": spread(outputs)}


def mean(outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
    """Mean of the outputs of each state."""
    return wide(outputs).mean(-1)


def spread(outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
    """Standard deviation of the outputs of each state."""
    outputs = wide(outputs)
    return (outputs - outputs.mean(-1, keepdim=True)).square().mean(-1).sqrt()
