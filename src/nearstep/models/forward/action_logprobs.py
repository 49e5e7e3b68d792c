"""Log-probs and entropies of the chosen actions from a language-model head, never holding [actions × vocabulary]."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nearstep.models.distribution import Sampling
from nearstep.models.forward.head import Head
from nearstep.models.forward.logits import logit_stats

# How many logits a chunk has: a larger vocabulary gets fewer actions per chunk, not more memory. On a CPU about what a
# usual micro-batch has with 32,000 tokens: every further chunk makes one more gradient of the head's whole weight.
LOGITS_HELD = {"cpu": 2**24, "cuda": 2**28}


@dataclass(frozen=True)
class ActionLogprobs:
    """Of every action, in nats: log-prob of the chosen token, entropy of its distribution; log-probs of the recorded
    top tokens, and log Σ exp of the model's own logits (no temperature, no cuts), if they were asked for."""

    sampled: Float[Tensor, " actions"]
    entropy: Float[Tensor, " actions"]
    top: Float[Tensor, "actions k"] | None = None
    log_normalizers: Float[Tensor, " actions"] | None = None


def action_logprobs(
    head: Head,
    hidden: Float[Tensor, "actions width"],
    actions: Int[Tensor, " actions"],
    sampling: Sampling,
    top_ids: Int[Tensor, "actions k"] | None = None,
    *,
    entropy_gradient: bool = False,
    log_normalizers: bool = False,
) -> ActionLogprobs:
    """Log-probabilities under the sampling distribution, chunk by chunk: the logits held do not grow with the actions.

    Each chunk is one call of the head. The logits of the last chunk stay until the backward pass, those of the others
    are made again there. The entropy has a gradient only with `entropy_gradient`.
    """
    token_ids = actions[:, None] if top_ids is None else torch.cat([actions[:, None], top_ids], dim=1)
    sizes = _chunk_sizes(len(actions), head.vocabulary, hidden.device)

    def read(states: Tensor, ids: Tensor) -> tuple[Tensor, ...]:
        stats = logit_stats(head, head.linear_logits(states), ids, sampling, log_normalizers=log_normalizers)
        first = stats.logprobs, stats.entropy
        return first if stats.log_normalizers is None else (*first, stats.log_normalizers)

    *others, last = zip(hidden.split(sizes), token_ids.split(sizes), strict=True)
    found = [checkpoint(read, *chunk, use_reentrant=False) for chunk in others]
    # The backward pass begins with the last chunk, so its logits take no memory beside those of another.
    found.append(read(*last))
    logprobs, entropy, *normalizers = (torch.cat(parts) for parts in zip(*found, strict=True))
    return ActionLogprobs(
        sampled=logprobs[:, 0],
        entropy=entropy if entropy_gradient else entropy.detach(),
        top=None if top_ids is None else logprobs[:, 1:],
        log_normalizers=normalizers[0] if normalizers else None,
    )


def _chunk_sizes(actions: int, vocabulary: int, device: torch.device) -> list[int]:
    """How many actions each chunk has. The first may be short; the last, which stays, is not."""
    size = max(16, LOGITS_HELD["cpu" if device.type == "cpu" else "cuda"] // vocabulary)
    first = actions % size
    return [first] * (first > 0 or actions == 0) + [size] * (actions // size)
