"""The axis of the critic's head: how the outputs of its last layer become a value, and what they learn from a target.

The weights are the model's own linear layer; a head is what that layer's numbers mean. Losses are one number for each
state: the caller weighs them, and divides their sum by a count that is fixed before any split.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from nearstep.algorithm.losses import clip_values, value_loss
from nearstep.algorithm.precision import wide

OUTSIDE = 1e-4  # share of the range by which a target may leave it by rounding


@dataclass(frozen=True)
class ValueTargets:
    """What the critic is to learn of some states, and what a loss may look at beside it."""

    targets: Float[Tensor, " states"]  # the returns
    old_values: Float[Tensor, " states"]  # at rollout
    samples: Int[Tensor, " states"]  # which of the responses to its prompt the state belongs to, from 0
    columns: Float[Tensor, "states columns"] | None = None  # the returns of each reward apart, where these are known


@runtime_checkable
class ValueHead(Protocol):
    """What the outputs of the critic's last layer mean. Any frozen dataclass with these members is one."""

    @property
    def outputs(self) -> int:
        """How many numbers the critic's last layer gives for a state."""

    @property
    def starts_at_zero(self) -> bool:
        """Whether the layer's weights begin at 0. Else they begin as those of the reward model, once for each output,
        where the critic starts from one."""

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The least and the largest return that it can learn; None where there is no limit."""

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """The value of every state, in float32 at least. A state's value depends on its own outputs alone."""

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """What is minimised, for every state by itself. Only `outputs` carry a gradient."""


@runtime_checkable
class MeasuresStates(Protocol):
    """A head that has something to say of every state; the means over states are logged as val/<name>."""

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """A number for every state, by name; `outputs` carry no gradient."""


@dataclass(frozen=True)
class LinearHead:
    """The output is the value; the loss is the clipped squared error of PPO, see `value_loss`."""

    cliprange: float = 0.2
    outputs: ClassVar[int] = 1
    starts_at_zero: ClassVar[bool] = False
    value_range: ClassVar[None] = None

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """The output itself."""
        return wide(outputs).squeeze(-1)

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """½·max((V − R)², (clip(V) − R)²)."""
        return value_loss(self.values(outputs), learned.old_values, learned.targets, cliprange=self.cliprange)

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """Where the clip decided the loss."""
        values, targets = self.values(outputs), learned.targets
        clipped = clip_values(values, learned.old_values, self.cliprange)
        return {"clipfrac_avg": ((clipped - targets).square() > (values - targets).square()).float()}


@dataclass(frozen=True)
class BoundedHead:
    """V = low + (high − low)·(½ + atan(z)/π), which is never outside the range; squared error. As in BPCO (2608.23566,
    second hand)."""

    low: float
    high: float
    outputs: ClassVar[int] = 1
    starts_at_zero: ClassVar[bool] = True

    @property
    def value_range(self) -> tuple[float, float]:
        """Declared."""
        return self.low, self.high

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """The middle of the range at z = 0."""
        share = 0.5 + torch.atan(wide(outputs).squeeze(-1)) / math.pi
        return self.low + (self.high - self.low) * share

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """½·(V − R)², R held in the range."""
        return (self.values(outputs) - held(learned.targets, self.low, self.high)).square() / 2

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """See `outside`."""
        return {"target_out_of_range": outside(learned.targets, self.low, self.high)}


@dataclass(frozen=True)
class BCEHead:
    """V = low + (high − low)·σ(z), learned by binary cross-entropy on the return as a share of the range. As in PACT
    (2609.26355, second hand)."""

    low: float
    high: float
    outputs: ClassVar[int] = 1
    starts_at_zero: ClassVar[bool] = True

    @property
    def value_range(self) -> tuple[float, float]:
        """Declared."""
        return self.low, self.high

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """The middle of the range at z = 0."""
        return self.low + (self.high - self.low) * wide(outputs).squeeze(-1).sigmoid()

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """−y·log σ(z) − (1 − y)·log(1 − σ(z)) with y = (R − low) / (high − low), R held in the range."""
        logits = wide(outputs).squeeze(-1)
        share = (held(learned.targets, self.low, self.high) - self.low) / (self.high - self.low)
        return binary_cross_entropy_with_logits(logits, share.to(logits.dtype), reduction="none")

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """See `outside`."""
        return {"target_out_of_range": outside(learned.targets, self.low, self.high)}


@dataclass(frozen=True)
class HLGaussHead:
    """A softmax over bins of equal width, learned by cross-entropy against the histogram of a Gaussian round the
    return; the value is its mean. The Gaussian's σ is `sigma` bin widths (HL-Gauss, 2403.03950).

    Within a few σ of an end of the range the histogram is cut off there, and its mean lies a little inside.
    """

    low: float
    high: float
    bins: int = 51
    sigma: float = 0.75
    starts_at_zero: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """A logit for each bin."""
        return self.bins

    @property
    def value_range(self) -> tuple[float, float]:
        """Declared."""
        return self.low, self.high

    def values(self, outputs: Float[Tensor, "states outputs"]) -> Float[Tensor, " states"]:
        """Σ p·centre of the bin; the middle of the range where all logits are equal."""
        logits = wide(outputs)
        return logits.softmax(-1) @ self._edges(logits).unfold(0, 2, 1).mean(-1)

    def loss(self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets) -> Float[Tensor, " states"]:
        """−Σ q·log p, q the histogram of the return, which is held in the range."""
        logits = wide(outputs)
        return -(self.histogram(learned.targets.to(logits.dtype)) * logits.log_softmax(-1)).sum(-1)

    def histogram(self, targets: Float[Tensor, " states"]) -> Float[Tensor, "states bins"]:
        """The share of each bin in a Gaussian round the target; what lies outside the range is left out."""
        width = (self.high - self.low) / self.bins
        gaps = self._edges(targets) - held(targets, self.low, self.high)[:, None]
        below = torch.erf(gaps / (self.sigma * width * math.sqrt(2)))  # twice the distribution function, less 1
        return below.diff(dim=-1) / (below[:, -1:] - below[:, :1])

    def measures(
        self, outputs: Float[Tensor, "states outputs"], learned: ValueTargets
    ) -> Mapping[str, Float[Tensor, " states"]]:
        """See `outside`; and the entropy of the bins, in nats."""
        logprobs = wide(outputs).log_softmax(-1)
        return {
            "target_out_of_range": outside(learned.targets, self.low, self.high),
            "value_entropy": -(logprobs.exp() * logprobs).sum(-1),
        }

    def _edges(self, like: Tensor) -> Float[Tensor, " edges"]:
        return torch.linspace(self.low, self.high, self.bins + 1, dtype=like.dtype, device=like.device)


def held(targets: Float[Tensor, " states"], low: float, high: float) -> Float[Tensor, " states"]:
    """Targets within the range: one outside counts as its nearer end."""
    return targets.clamp(low, high)


def outside(targets: Float[Tensor, " states"], low: float, high: float) -> Float[Tensor, " states"]:
    """1 where a target lies outside the range by more than rounding."""
    slack = OUTSIDE * (high - low)
    return ((targets < low - slack) | (targets > high + slack)).float()
