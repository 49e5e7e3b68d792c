"""What a language-model head says about the chosen actions, without ever holding [actions × vocabulary]."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nearstep.models.distribution import Sampling, sampling_logprobs, tempered

# How many logits are held at a time: a larger vocabulary gets fewer actions per chunk, not more memory.
LOGITS_HELD = {"cpu": 2**24, "cuda": 2**28}
# How many of them are worked on in float32 at a time: few enough for a processor's cache, many enough for a GPU.
LOGITS_IN_WORK = {"cpu": 2**19, "cuda": 2**26}
IMPOSSIBLE = -1e4  # a finite log-probability whose probability is 0 in any type


@dataclass
class Scratch:
    """Memory for logits that is used again: on a CPU, asking the system for it anew costs a fifth of the product."""

    spare: Tensor | None = None

    def take(self, places: int, like: Tensor) -> Tensor:
        """A line of `places` numbers with anything in them; nobody else has it until it is given back."""
        spare, self.spare = self.spare, None
        fits = spare is not None and len(spare) >= places and (spare.dtype, spare.device) == (like.dtype, like.device)
        return spare if spare is not None and fits else like.new_empty(places)

    def give_back(self, taken: Tensor) -> None:
        """Keep it for the next; a GPU's own allocator does that better."""
        self.spare = taken if taken.is_cpu else None


@dataclass(frozen=True)
class Head:
    """The output layer of a causal model: logits = cap · tanh(scale · (hidden @ weightᵀ + bias) / cap)."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None
    scratch: Scratch = field(default_factory=Scratch, compare=False, repr=False)

    def logits(self, hidden: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
        """Logits at the given places, in the model's type."""
        return self.shaped(self.linear(hidden))

    def shaped(self, linear: Float[Tensor, "places vocabulary"]) -> Float[Tensor, "places vocabulary"]:
        """Logits from what the linear layer gave."""
        logits = linear if self.scale == 1 else linear * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class ActionLogprobs:
    """Of every action, in nats: log-prob of the chosen token, entropy of its distribution, log-probs of the recorded
    top tokens if they were asked for."""

    sampled: Float[Tensor, " actions"]
    entropy: Float[Tensor, " actions"]
    top: Float[Tensor, "actions k"] | None = None


def action_logprobs(
    head: Head,
    hidden: Float[Tensor, "actions width"],
    actions: Int[Tensor, " actions"],
    sampling: Sampling,
    top_ids: Int[Tensor, "actions k"] | None = None,
    *,
    entropy_gradient: bool = False,
) -> ActionLogprobs:
    """Log-probabilities under the sampling distribution, chunk by chunk: memory does not grow with the vocabulary.

    The logits of the last chunk stay until the backward pass and become their own gradient there; those of other
    chunks, if there are any, are made again. The gradient of the head's weights is added to their `.grad` where it
    lies: `backward()` trains them, `torch.autograd.grad` does not see them. The entropy has a gradient only with
    `entropy_gradient`.
    """
    device, weight = hidden.device.type, head.linear.weight
    compute_type = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    asked = actions[:, None] if top_ids is None else torch.cat([actions[:, None], top_ids], dim=1)
    work = _Work(head, asked, sampling)
    logprobs, entropy = _Logprobs.apply(hidden.to(compute_type), weight, head.linear.bias, work)  # type: ignore[no-untyped-call]
    return ActionLogprobs(
        sampled=logprobs[:, 0],
        entropy=entropy if entropy_gradient else entropy.detach(),
        top=None if top_ids is None else logprobs[:, 1:],
    )


@dataclass(frozen=True)
class _Work:
    """What is asked of a head: log-probs of the ids `asked` at every action, the chosen token first."""

    head: Head
    asked: Int[Tensor, "actions ids"]
    sampling: Sampling

    @property
    def chunks(self) -> list[slice]:
        """Actions whose logits are held together. The first may be short; the last, which stays, is not."""
        size = max(16, LOGITS_HELD[self.asked.device.type] // self.head.linear.out_features)
        ends = range(len(self.asked), 0, -size)
        return [slice(max(0, end - size), end) for end in reversed(ends)]

    @property
    def size(self) -> int:
        """How many logits the largest chunk has."""
        return max((chunk.stop - chunk.start for chunk in self.chunks), default=0) * self.head.linear.out_features

    def lines(self, room: Tensor, chunk: slice) -> Float[Tensor, "lines vocabulary"]:
        """Where the logits of a chunk lie in memory for so many."""
        width = self.head.linear.out_features
        return room[: (chunk.stop - chunk.start) * width].view(-1, width)

    def blocks(self, chunk: slice) -> Iterator[tuple[slice, slice]]:
        """Actions of a chunk that are worked on together, as places among all actions and as lines of the chunk."""
        size = max(4, LOGITS_IN_WORK[self.asked.device.type] // self.head.linear.out_features)
        for start in range(chunk.start, chunk.stop, size):
            stop = min(start + size, chunk.stop)
            yield slice(start, stop), slice(start - chunk.start, stop - chunk.start)

    def logprobs(self, linear: Tensor, places: slice) -> tuple[Tensor, Tensor]:
        """Logits and log-probs of the whole vocabulary, from what the linear layer gave."""
        logits = self.head.shaped(linear)
        return logits, sampling_logprobs(logits, self.sampling, self.asked[places, 0])

    def logprobs_again(self, linear: Tensor, places: slice, sampled: Tensor) -> tuple[Tensor, Tensor]:
        """The same once more: a chosen token whose log-prob is known says what the logits are to be lowered by."""
        if self.sampling.cuts:
            return self.logprobs(linear, places)
        logits = self.head.shaped(linear)
        scaled = tempered(logits, self.sampling)
        return logits, scaled.sub_(scaled.gather(1, self.asked[places, :1]) - sampled[:, None])

    def gradient(
        self,
        linear: Tensor,
        places: slice,
        sampled: Tensor,
        entropy: Tensor,
        of_asked: Tensor,
        of_entropy: Tensor | None,
    ) -> Tensor:
        """Gradient of the linear layer's output, from those of the log-probs that were asked for and of the entropy.

        With z the logits over the temperature: ∂ log p_a / ∂z = onehot_a − p, and ∂H / ∂z = −p · (log p + H).
        """
        logits, logprobs = self.logprobs_again(linear, places, sampled)
        of_asked = of_asked * (self.head.scale / self.sampling.temperature)
        cut = logprobs == -torch.inf if self.sampling.cuts else None
        total = of_asked.sum(1, keepdim=True)
        if of_entropy is None:
            gradient = logprobs.exp_().mul_(-total)
        else:
            probabilities = logprobs.exp()
            weight = of_entropy[:, None] * (self.head.scale / self.sampling.temperature)
            factor = logprobs.clamp_(min=IMPOSSIBLE).add_(entropy[:, None]).mul_(weight).add_(total)
            gradient = probabilities.mul_(factor.neg_())
        gradient.scatter_add_(1, self.asked[places], of_asked)
        if cut is not None:
            gradient.masked_fill_(cut, 0)
        if self.head.softcap is not None:
            gradient.mul_(1 - (logits / self.head.softcap).square())
        return gradient


class _Logprobs(torch.autograd.Function):
    """(hidden states, weight, bias) → log-probs of what is asked, [actions, ids], and entropies, [actions]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> tuple[Tensor, Tensor]:
        outcome = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = hidden.new_empty(work.asked.shape, dtype=outcome)
        entropy = hidden.new_empty(len(hidden), dtype=outcome)
        learns = any(ctx.needs_input_grad)
        held = work.head.scratch.take(work.size, hidden) if learns else hidden.new_empty(work.size)
        for chunk in work.chunks:
            linear = _linear(hidden[chunk], weight, bias, into=work.lines(held, chunk))
            for places, lines in work.blocks(chunk):
                _, of_block = work.logprobs(linear[lines], places)
                logprobs[places] = of_block.gather(1, work.asked[places])
                entropy[places] = -torch.linalg.vecdot(of_block.exp(), of_block.clamp_(min=IMPOSSIBLE))
        ctx.save_for_backward(hidden, weight, bias, logprobs[:, 0].clone(), entropy)
        ctx.set_materialize_grads(False)
        ctx.work, ctx.held = work, held
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None
    ) -> tuple[Tensor | None, None, None, None]:
        hidden, weight, bias, sampled, entropy = ctx.saved_tensors
        work, kept = ctx.work, ctx.held
        ctx.held = None  # overwritten here: a second backward pass over the same graph makes all logits again
        held = work.head.scratch.take(work.size, hidden) if kept is None else kept
        if of_logprobs is None:
            of_logprobs = entropy.new_zeros(work.asked.shape)
        of_hidden = torch.empty_like(hidden)
        for chunk in reversed(work.chunks):
            linear = work.lines(held, chunk)
            if kept is None or chunk != work.chunks[-1]:
                _linear(hidden[chunk], weight, bias, into=linear)
            for places, lines in work.blocks(chunk):
                of_entropies = None if of_entropy is None else of_entropy[places]
                linear[lines] = work.gradient(
                    linear[lines], places, sampled[places], entropy[places], of_logprobs[places], of_entropies
                )
            torch.mm(linear, weight.to(linear.dtype), out=of_hidden[chunk])
            _add_gradients(linear, hidden[chunk], weight, bias)
        work.head.scratch.give_back(held)
        return of_hidden, None, None, None


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, into: Tensor) -> Tensor:
    """hidden @ weightᵀ + bias in `into`."""
    product = torch.mm(hidden, weight.to(hidden.dtype).T, out=into)
    return product if bias is None else product.add_(bias)


def _add_gradients(of_linear: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add to the weights' gradients in place: one more tensor of their size would be the largest of all."""
    for parameter in (weight, bias):
        if parameter is not None and parameter.requires_grad and parameter.grad is None:
            assert parameter.is_leaf, "the output layer's weights must be parameters of their own"
            parameter.grad = torch.zeros_like(parameter)
    if weight.requires_grad and weight.grad is not None:
        if weight.dtype == hidden.dtype:
            weight.grad.addmm_(of_linear.T, hidden)
        else:
            weight.grad.add_(of_linear.T @ hidden)
    if bias is not None and bias.grad is not None:
        bias.grad.add_(of_linear.sum(0))
