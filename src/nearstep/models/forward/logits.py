"""What is read off the logits of a head, and how they become their own gradient."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.models.distribution import Sampling, sampling_logprobs, tempered
from nearstep.models.forward.head import Head

# How many logits are worked on in float32 at a time: few enough for a processor's cache, many enough for a GPU.
LOGITS_IN_WORK = {"cpu": 2**19, "cuda": 2**26}
IMPOSSIBLE = -1e4  # a finite log-probability whose probability is 0 in any type


@dataclass(frozen=True)
class Answers:
    """Of every action: log-probs of the ids that are asked for, the chosen token first, and the entropy."""

    logprobs: Float[Tensor, "actions ids"]
    entropy: Float[Tensor, " actions"]

    def of(self, places: slice) -> "Answers":
        """Those of some actions."""
        return Answers(self.logprobs[places], self.entropy[places])


@dataclass(frozen=True)
class OfAnswers:
    """The gradients of the answers; the entropy has one only where it is trained."""

    logprobs: Float[Tensor, "actions ids"]
    entropy: Float[Tensor, " actions"] | None

    def of(self, places: slice) -> "OfAnswers":
        """Those of some actions."""
        return OfAnswers(self.logprobs[places], None if self.entropy is None else self.entropy[places])


@runtime_checkable
class Reader(Protocol):
    """Answers what is asked about the actions at `places`, from what the linear layer gave for them."""

    def read(self, linear: Float[Tensor, "lines vocabulary"], places: slice) -> Answers:
        """What is asked; `linear` stays as it is."""

    def differentiate(
        self, linear: Float[Tensor, "lines vocabulary"], places: slice, answers: Answers, gradients: OfAnswers
    ) -> None:
        """Overwrite `linear` with its gradient, from those of the answers. Of the answers themselves the chosen token's
        log-prob and the entropy are enough."""


@dataclass(frozen=True)
class InBlocks:
    """By torch's operations, a block of logits after the other: for every head, type, device and way of sampling."""

    head: Head
    asked: Int[Tensor, "actions ids"]
    sampling: Sampling

    def read(self, linear: Float[Tensor, "lines vocabulary"], places: slice) -> Answers:
        """See Reader.read."""
        outcome = torch.promote_types(linear.dtype, torch.float32)
        logprobs = linear.new_empty(self.asked[places].shape, dtype=outcome)
        entropy = linear.new_empty(len(linear), dtype=outcome)
        for block, lines in self._blocks(places):
            _, of_block = self._logprobs(linear[lines], block)
            logprobs[lines] = of_block.gather(1, self.asked[block])
            entropy[lines] = -torch.linalg.vecdot(of_block.exp(), of_block.clamp_(min=IMPOSSIBLE))
        return Answers(logprobs, entropy)

    def differentiate(
        self, linear: Float[Tensor, "lines vocabulary"], places: slice, answers: Answers, gradients: OfAnswers
    ) -> None:
        """See Reader.differentiate."""
        for block, lines in self._blocks(places):
            linear[lines] = self._gradient(linear[lines], block, answers.of(lines), gradients.of(lines))

    def _blocks(self, places: slice) -> Iterator[tuple[slice, slice]]:
        """Actions that are worked on together, as places among all actions and as lines of `linear`."""
        size = max(4, LOGITS_IN_WORK[self.asked.device.type] // self.head.linear.out_features)
        for start in range(places.start, places.stop, size):
            stop = min(start + size, places.stop)
            yield slice(start, stop), slice(start - places.start, stop - places.start)

    def _logprobs(self, linear: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Logits and log-probs of the whole vocabulary."""
        logits = self.head.shaped(linear)
        return logits, sampling_logprobs(logits, self.sampling, self.asked[block, 0])

    def _logprobs_again(self, linear: Tensor, block: slice, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """The same once more: a chosen token whose log-prob is known says what the logits are to be lowered by."""
        if self.sampling.cuts:
            return self._logprobs(linear, block)
        logits = self.head.shaped(linear)
        scaled = tempered(logits, self.sampling)
        return logits, scaled.sub_(scaled.gather(1, self.asked[block, :1]) - sampled[:, None])

    def _gradient(self, linear: Tensor, block: slice, answers: Answers, gradients: OfAnswers) -> Tensor:
        """Gradient of a block of the linear layer's output.

        With z the logits over the temperature: ∂ log p_a / ∂z = onehot_a − p, and ∂H / ∂z = −p · (log p + H).
        """
        logits, logprobs = self._logprobs_again(linear, block, answers.logprobs[:, 0])
        slope = self.head.scale / self.sampling.temperature
        of_asked = gradients.logprobs * slope
        cut = logprobs == -torch.inf if self.sampling.cuts else None
        total = of_asked.sum(1, keepdim=True)
        if gradients.entropy is None:
            gradient = logprobs.exp_().mul_(-total)
        else:
            probabilities = logprobs.exp()
            weight = gradients.entropy[:, None] * slope
            factor = logprobs.clamp_(min=IMPOSSIBLE).add_(answers.entropy[:, None]).mul_(weight).add_(total)
            gradient = probabilities.mul_(factor.neg_())
        gradient.scatter_add_(1, self.asked[block], of_asked)
        if cut is not None:
            gradient.masked_fill_(cut, 0)
        if self.head.softcap is not None:
            gradient.mul_(1 - (logits / self.head.softcap).square())
        return gradient
