"""What a language-model head says about the chosen actions, without ever holding [actions × vocabulary]."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nearstep.models.distribution import Sampling, sampling_logprobs

SMALLEST_LOGPROB = -1e4
LOGITS_AT_A_TIME = 2**23  # 32 MiB in float32; a larger vocabulary gets fewer actions per chunk, not more memory


@dataclass(frozen=True)
class Head:
    """The output layer of a causal model: logits = cap · tanh(scale · (hidden @ weightᵀ + bias) / cap)."""

    linear: nn.Linear
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
        """Logits at the given places, in the model's type."""
        logits = self.linear(hidden) * self.scale if self.scale != 1 else self.linear(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@dataclass(frozen=True)
class ActionLogprobs:
    """Of every action, in nats: log-prob of the chosen token, entropy of its distribution, log-probs of the recorded
    top tokens if they were asked for. The entropy carries a gradient only if that was asked for."""

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
    """Log-probabilities under the sampling distribution, chunk by chunk.

    The logits of a chunk are dropped after use and made again in the backward pass, so memory does not grow with the
    number of actions or the size of the vocabulary.
    """
    size = max(16, LOGITS_AT_A_TIME // head.linear.out_features)
    ids = [None] * len(actions.split(size)) if top_ids is None else top_ids.split(size)
    chunks = zip(hidden.split(size), actions.split(size), ids, strict=True)
    parts = [checkpoint(_chunk, head, *chunk, sampling, entropy_gradient, use_reentrant=False) for chunk in chunks]
    sampled, entropy, top = zip(*parts, strict=True)
    return ActionLogprobs(torch.cat(sampled), torch.cat(entropy), None if top_ids is None else torch.cat(top))


def _chunk(
    head: Head, hidden: Tensor, actions: Tensor, top_ids: Tensor | None, sampling: Sampling, entropy_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    logprobs = sampling_logprobs(head.logits(hidden), sampling, actions)
    sampled = logprobs.gather(-1, actions[:, None]).squeeze(-1)
    top = None if top_ids is None else logprobs.gather(-1, top_ids)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # A token that is cut has log-prob −inf: held finite, 0 · log 0 is 0 in both passes.
        entropy = -(logprobs.exp() * logprobs.clamp(min=SMALLEST_LOGPROB)).sum(-1)
    return sampled, entropy, top
