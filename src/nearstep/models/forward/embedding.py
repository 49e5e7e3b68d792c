"""How token ids become the first hidden states, with a gradient that is added where it lies."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn import functional


@dataclass(frozen=True)
class TokenEmbedding:
    """The embedding of a trunk: rows of a weight, in some families (Gemma's) times a factor."""

    module: nn.Embedding
    factor: Float[Tensor, " width"] | None

    @staticmethod
    @torch.no_grad()
    def of(module: nn.Module) -> "TokenEmbedding | None":
        """The module as rows times a factor; None where it has adapters or does more than torch's own. Whether rows
        times a factor are what it gives is for the caller to see."""
        if not isinstance(module, nn.Embedding) or module.max_norm or module.sparse or module.scale_grad_by_freq:
            return None
        ones = module.weight.new_ones(1, module.embedding_dim).expand_as(module.weight)
        factor: Tensor = functional_call(
            module, {"weight": ones}, (torch.zeros(1, dtype=torch.long, device=ones.device),)
        )
        return TokenEmbedding(module, None if (factor == 1).all() else factor[0])

    @property
    def learns(self) -> bool:
        """Whether `rows` is to be used now: there is a gradient to form, and nobody waits for a call of the module."""
        watched = self.module._forward_hooks or self.module._forward_pre_hooks
        return self.module.weight.requires_grad and torch.is_grad_enabled() and not watched

    def rows(self, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, "tokens width"]:
        """What the module gives for the tokens.

        The usual backward pass makes a gradient of the whole vocabulary, nearly all of it zeros, for every micro-batch,
        and adds it to the one that is there. Here only the rows of the tokens are added, to `.grad`: `backward()`
        trains the embedding, `torch.autograd.grad` does not see it.
        """
        rows: Tensor = _Lookup.apply(self.module.weight, tokens, self.module.padding_idx)  # type: ignore[no-untyped-call]
        return rows if self.factor is None else rows * self.factor


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
