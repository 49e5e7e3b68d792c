"""What a language-model head says about the chosen actions, without ever holding [actions × vocabulary]."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearstep.models.distribution import Sampling
from nearstep.models.forward.head import Head
from nearstep.models.forward.logits import Answers, InBlocks, OfAnswers, Reader
from nearstep.models.logits_cpu import InLoops
from nearstep.models.products import add_outer, times_across, times_into

# How many logits are held at a time: a larger vocabulary gets fewer actions per chunk, not more memory. On a CPU about
# what a usual micro-batch has with 32,000 tokens, so that memory hardly grows up to the limit either.
LOGITS_HELD = {"cpu": 10 * 2**20, "cuda": 2**28}


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
    loops_fit = InLoops.fits(head, sampling, compute_type, hidden.device)
    reader = InLoops(asked, head.scale / sampling.temperature) if loops_fit else InBlocks(head, asked, sampling)
    work = _Work(head, reader, asked.shape)
    logprobs, entropy = _Logprobs.apply(hidden.to(compute_type), weight, head.linear.bias, work)  # type: ignore[no-untyped-call]
    return ActionLogprobs(
        sampled=logprobs[:, 0],
        entropy=entropy if entropy_gradient else entropy.detach(),
        top=None if top_ids is None else logprobs[:, 1:],
    )


@dataclass(frozen=True)
class _Work:
    """What a head is asked, and by whom it is answered."""

    head: Head
    reader: Reader
    asked: torch.Size  # [actions, ids]

    @property
    def vocabulary(self) -> int:
        """How many logits an action has."""
        return self.head.linear.out_features

    def chunks(self, device: torch.device) -> list[slice]:
        """Actions whose logits are held together. The first may be short; the last, which stays, is not."""
        size = max(16, LOGITS_HELD[device.type] // self.vocabulary)
        ends = range(self.asked[0], 0, -size) or [0]
        return [slice(max(0, end - size), end) for end in reversed(ends)]

    def room(self, chunks: list[slice], like: Tensor, *, kept: bool) -> Tensor:
        """Memory for the logits of the largest chunk."""
        places = max(chunk.stop - chunk.start for chunk in chunks) * self.vocabulary
        return self.head.scratch.take(places, like) if kept else like.new_empty(places)

    def lines(self, room: Tensor, chunk: slice) -> Float[Tensor, "lines vocabulary"]:
        """Where the logits of a chunk lie in it."""
        return room[: (chunk.stop - chunk.start) * self.vocabulary].view(-1, self.vocabulary)


class _Logprobs(torch.autograd.Function):
    """(hidden states, weight, bias) → log-probs of what is asked, [actions, ids], and entropies, [actions]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> tuple[Tensor, Tensor]:
        chunks = work.chunks(hidden.device)
        held = work.room(chunks, hidden, kept=any(ctx.needs_input_grad))
        found = [
            work.reader.read(_linear(hidden[chunk], weight, bias, into=work.lines(held, chunk)), chunk)
            for chunk in chunks
        ]
        logprobs, entropy = torch.cat([one.logprobs for one in found]), torch.cat([one.entropy for one in found])
        ctx.save_for_backward(hidden, weight, bias, logprobs[:, :1].clone(), entropy)
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
        chunks = work.chunks(hidden.device)
        held = work.room(chunks, hidden, kept=True) if kept is None else kept
        answers = Answers(sampled, entropy)
        if of_logprobs is None:
            of_logprobs = entropy.new_zeros(work.asked)
        gradients = OfAnswers(of_logprobs, of_entropy)
        of_hidden = torch.empty_like(hidden)
        for chunk in reversed(chunks):
            linear = work.lines(held, chunk)
            if kept is None or chunk != chunks[-1]:
                _linear(hidden[chunk], weight, bias, into=linear)
            work.reader.differentiate(linear, chunk, answers.of(chunk), gradients.of(chunk))
            of_hidden[chunk] = times_across(linear, weight.to(linear.dtype))
            _add_gradients(linear, hidden[chunk], weight, bias)
        work.head.scratch.give_back(held)
        return of_hidden, None, None, None


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, into: Tensor) -> Tensor:
    """hidden @ weightᵀ + bias in `into`."""
    product = times_into(into, hidden, weight.to(hidden.dtype))
    return product if bias is None else product.add_(bias)


def _add_gradients(of_linear: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Add to the weights' gradients in place: one more tensor of their size would be the largest of all."""
    for parameter in (weight, bias):
        if parameter is not None and parameter.requires_grad and parameter.grad is None:
            assert parameter.is_leaf, "the output layer's weights must be parameters of their own"
            parameter.grad = torch.zeros_like(parameter)
    if weight.requires_grad and weight.grad is not None:
        if weight.dtype == hidden.dtype:
            add_outer(weight.grad, of_linear, hidden)
        else:
            weight.grad.add_(of_linear.T @ hidden)
    if bias is not None and bias.grad is not None:
        bias.grad.add_(of_linear.sum(0))
