"""How token ids become the first hidden states, with a gradient that is added where it lies."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def plain_embedding(module: nn.Module) -> nn.Embedding | None:
    """The module if it does nothing but look up rows of its weight: no scaling, no adapters, no limit on norms."""
    if type(module) is not nn.Embedding or module.max_norm is not None or module.sparse or module.scale_grad_by_freq:
        return None
    return module


def learns_in_place(embedding: nn.Embedding | None) -> bool:
    """Whether `embedded` is to be used now: it learns, and nobody waits for its module to be called."""
    if embedding is None or not (embedding.weight.requires_grad and torch.is_grad_enabled()):
        return False
    return not (embedding._forward_hooks or embedding._forward_pre_hooks)


def embedded(embedding: nn.Embedding, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
    """The rows of the tokens.

    The usual backward pass makes a gradient of the whole vocabulary, nearly all of it zeros, for every micro-batch, and
    adds it to the one that is there. Here only the rows of the tokens are added, to `.grad`: `backward()` trains the
    embedding, `torch.autograd.grad` does not see it.
    """
    rows: Tensor = _Lookup.apply(embedding.weight, tokens, embedding.padding_idx)  # type: ignore[no-untyped-call]
    return rows


class _Lookup(torch.autograd.Function):
    """(weight, tokens) → rows of the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(weight, tokens)
        ctx.padding = padding
        return functional.embedding(tokens, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_rows: Tensor) -> tuple[None, None, None]:
        weight, tokens = ctx.saved_tensors
        if weight.grad is None:
            assert weight.is_leaf, "the embedding must be a parameter of its own"
            weight.grad = torch.zeros_like(weight)
        if ctx.padding is not None:
            of_rows = of_rows.masked_fill((tokens == ctx.padding)[:, None], 0)
        of_rows = of_rows.to(weight.dtype)
        # On each device the one of the two that adds the rows of a repeated token in the same order every time.
        if weight.is_cuda:
            weight.grad.index_put_((tokens,), of_rows, accumulate=True)
        else:
            weight.grad.index_add_(0, tokens, of_rows)
        return None, None, None
