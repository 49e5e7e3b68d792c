"""What is read off the logits of a head, and its gradient: in blocks, so that little is held in float32 at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearstep.algorithm.precision import wide
from nearstep.models.distribution import Sampling, sampling_logprobs, tempered
from nearstep.models.forward.head import Head

# How many logits are worked on in float32 at a time: few enough for a processor's cache, many enough for a GPU.
LOGITS_IN_WORK = {"cpu": 2**19, "cuda": 2**26}
IMPOSSIBLE = -1e4  # a finite log-probability whose probability is 0 in any type


@dataclass(frozen=True)
class LogitStats:
    """Of every action: log-probs of the ids that are asked for, the chosen token first, the entropy, and if asked for
    the log-normaliser, log Σ exp, of the model's own logits: before temperature and cuts."""

    logprobs: Float[Tensor, "actions ids"]
    entropy: Float[Tensor, " actions"]
    log_normalizers: Float[Tensor, " actions"] | None = None

    def __getitem__(self, places: slice) -> "LogitStats":
        """Those of some actions."""
        normalizers = None if self.log_normalizers is None else self.log_normalizers[places]
        return LogitStats(self.logprobs[places], self.entropy[places], normalizers)


@dataclass(frozen=True)
class LogitStatsGrad:
    """The gradients of the statistics; entropy and log-normalisers have one only where they are trained."""

    logprobs: Float[Tensor, "actions ids"]
    entropy: Float[Tensor, " actions"] | None
    log_normalizers: Float[Tensor, " actions"] | None = None

    def __getitem__(self, places: slice) -> "LogitStatsGrad":
        """Those of some actions."""
        entropy = None if self.entropy is None else self.entropy[places]
        normalizers = None if self.log_normalizers is None else self.log_normalizers[places]
        return LogitStatsGrad(self.logprobs[places], entropy, normalizers)


def logit_stats(
    head: Head,
    linear: Float[Tensor, "actions vocabulary"],
    token_ids: Int[Tensor, "actions ids"],
    sampling: Sampling,
    *,
    log_normalizers: bool = False,
) -> LogitStats:
    """Log-probs, in nats, of the ids asked for and the entropy under the sampling distribution, in float32 at least;
    with `log_normalizers` those of the model's logits as well.

    `linear` is what the head's linear layer gave. Differentiable once.
    """
    reader = _Reader(head, token_ids, sampling, log_normalizers)
    return LogitStats(*_LogitStats.apply(linear, reader))  # type: ignore[no-untyped-call]


class _LogitStats(torch.autograd.Function):
    """Linear layer's output → log-probs, [actions, ids], entropies, and log-normalisers or None, both [actions].

    Written out because torch would keep several tensors of actions × vocabulary in float32.
    """

    @staticmethod
    def forward(ctx: Any, linear: Tensor, reader: "_Reader") -> tuple[Tensor, Tensor, Tensor | None]:
        found = reader.read(linear)
        ctx.save_for_backward(linear, found.logprobs[:, :1].clone(), found.entropy, found.log_normalizers)
        ctx.set_materialize_grads(False)
        ctx.reader = reader
        return found.logprobs, found.entropy, found.log_normalizers

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None, grad_normalizers: Tensor | None
    ) -> tuple[Tensor, None]:
        linear, sampled, entropy, log_normalizers = ctx.saved_tensors
        if grad_logprobs is None:
            grad_logprobs = entropy.new_zeros(ctx.reader.token_ids.shape)
        grad = LogitStatsGrad(grad_logprobs, grad_entropy, grad_normalizers)
        return ctx.reader.grad_linear(linear, LogitStats(sampled, entropy, log_normalizers), grad), None


@dataclass(frozen=True)
class _Reader:
    """What is asked of the logits, and under which distribution."""

    head: Head
    token_ids: Int[Tensor, "actions ids"]
    sampling: Sampling
    log_normalizers: bool = False

    def read(self, linear: Float[Tensor, "actions vocabulary"]) -> LogitStats:
        """The statistics."""
        dtype = torch.promote_types(linear.dtype, torch.float32)
        logprobs = linear.new_empty(self.token_ids.shape, dtype=dtype)
        entropy = linear.new_empty(len(linear), dtype=dtype)
        normalizers = torch.empty_like(entropy) if self.log_normalizers else None
        for block in self._blocks(linear):
            logits, whole = self._logprobs(linear[block], block)
            logprobs[block] = whole.gather(1, self.token_ids[block])
            entropy[block] = -torch.linalg.vecdot(whole.exp(), whole.clamp_(min=IMPOSSIBLE))
            if normalizers is not None:
                normalizers[block] = wide(logits).logsumexp(1)
        return LogitStats(logprobs, entropy, normalizers)

    def grad_linear(
        self, linear: Float[Tensor, "actions vocabulary"], stats: LogitStats, grad: LogitStatsGrad
    ) -> Float[Tensor, "actions vocabulary"]:
        """The gradient of `linear`. Of `stats` the chosen token's log-prob and the entropy are enough."""
        grad_linear = torch.empty_like(linear)
        for block in self._blocks(linear):
            grad_linear[block] = self._grad_block(linear[block], block, stats[block], grad[block])
        return grad_linear

    def _blocks(self, linear: Tensor) -> Iterator[slice]:
        """Actions that are worked on together."""
        size = max(4, LOGITS_IN_WORK["cpu" if linear.is_cpu else "cuda"] // linear.shape[1])
        for start in range(0, len(linear), size):
            yield slice(start, start + size)

    def _logprobs(self, linear: Tensor, block: slice) -> tuple[Tensor, Tensor]:
        """Logits and log-probs of the whole vocabulary."""
        logits = self.head.shaped(linear)
        return logits, sampling_logprobs(logits, self.sampling, self.token_ids[block, 0])

    def _logprobs_again(self, linear: Tensor, block: slice, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """The same, recomputed: the log-prob of the chosen token gives the normaliser without a reduction."""
        if self.sampling.cuts:
            return self._logprobs(linear, block)
        logits = self.head.shaped(linear)
        scaled = tempered(logits, self.sampling)
        return logits, scaled.sub_(scaled.gather(1, self.token_ids[block, :1]) - sampled[:, None])

    def _grad_block(self, linear: Tensor, block: slice, stats: LogitStats, grad: LogitStatsGrad) -> Tensor:
        """Gradient of a block of the linear layer's output.

        With z the logits over the temperature: ∂ log p_a / ∂z = onehot_a − p, and ∂H / ∂z = −p · (log p + H). Of the
        logits l themselves: ∂ log Σ exp l / ∂l = exp(l − log Σ exp l).
        """
        logits, logprobs = self._logprobs_again(linear, block, stats.logprobs[:, 0])
        slope = self.head.scale / self.sampling.temperature
        grad_logprobs = grad.logprobs * slope
        cut = logprobs == -torch.inf if self.sampling.cuts else None
        total = grad_logprobs.sum(1, keepdim=True)
        if grad.entropy is None:
            gradient = logprobs.exp_().mul_(-total)
        else:
            probabilities = logprobs.exp()
            weight = grad.entropy[:, None] * slope
            factor = logprobs.clamp_(min=IMPOSSIBLE).add_(stats.entropy[:, None]).mul_(weight).add_(total)
            gradient = probabilities.mul_(factor.neg_())
        gradient.scatter_add_(1, self.token_ids[block], grad_logprobs)
        if cut is not None:
            gradient.masked_fill_(cut, 0)
        if grad.log_normalizers is not None and stats.log_normalizers is not None:
            share = (wide(logits) - stats.log_normalizers[:, None]).exp_()
            gradient.add_(share.mul_((grad.log_normalizers * self.head.scale)[:, None]))
        if self.head.softcap is not None:
            gradient.mul_(1 - (logits / self.head.softcap).square())
        return gradient
