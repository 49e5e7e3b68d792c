"""Which distribution tokens are drawn from. One function for engine and trainer, so both always mean the same."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.algorithm.precision import wide


@dataclass(frozen=True)
class Sampling:
    """Temperature first, then the `top_k` most probable tokens (0: all), then the smallest set with mass `top_p`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    @property
    def cuts(self) -> bool:
        """Whether tokens are left out at all."""
        return self.top_p < 1 or self.top_k > 0


def sampling_logprobs(
    logits: Float[Tensor, "places vocabulary"],
    sampling: Sampling,
    sampled: Int[Tensor, " places"] | None = None,
) -> Float[Tensor, "places vocabulary"]:
    """Natural log of the distribution that is sampled, in float32 at least; −inf for tokens that `sampling` cuts.

    A token in `sampled` is never cut: the trainer asks for its log-probability also when the policy has moved since.
    """
    logits = tempered(logits, sampling)
    if sampling.cuts:
        logits = logits.masked_fill(~_kept(logits.detach(), sampling, sampled), -torch.inf)
    return logits.log_softmax(-1)


def tempered(logits: Float[Tensor, "places vocabulary"], sampling: Sampling) -> Float[Tensor, "places vocabulary"]:
    """Logits over the temperature, in float32 at least; always a new tensor."""
    return wide(logits) / sampling.temperature


def _kept(logits: Tensor, sampling: Sampling, sampled: Tensor | None) -> Tensor:
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k > 0:
        ordered = ordered.index_fill(
            -1, torch.arange(min(sampling.top_k, logits.shape[-1]), logits.shape[-1], device=logits.device), -torch.inf
        )
    probabilities = ordered.softmax(-1)
    mass_before = probabilities.cumsum(-1) - probabilities
    keep_ordered = (mass_before < sampling.top_p) & (ordered > -torch.inf)
    keep = torch.zeros_like(keep_ordered).scatter(-1, order, keep_ordered)
    return keep if sampled is None else keep.scatter(-1, sampled[:, None], True)
