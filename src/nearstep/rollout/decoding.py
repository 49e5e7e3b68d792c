"""One token further: from the newest token of every live row to the logits of its next."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearstep.models.forward.trunk import hidden_states
from nearstep.models.roles import Policy
from nearstep.rollout.slot_cache import DecodeStep, SlotCache


@runtime_checkable
class Decoding(Protocol):
    """How a decoding step is carried out."""

    def logits(self, tokens: Int[Tensor, " live"], lengths: Sequence[int]) -> Float[Tensor, "live vocabulary"]:
        """Feed row i, which fills `lengths[i]` places of slot i, its newest token; the logits of its next.

        They may be overwritten by the next call.
        """


@dataclass(frozen=True)
class PlainDecoding:
    """Every step for just the live rows, as wide as the longest of them."""

    policy: Policy
    cache: SlotCache

    def logits(self, tokens: Int[Tensor, " live"], lengths: Sequence[int]) -> Float[Tensor, "live vocabulary"]:
        """See Decoding.logits."""
        places = torch.tensor(lengths, device=tokens.device)
        return next_logits(self.policy, self.cache, tokens, places, width=max(lengths) + 1)


def next_logits(
    policy: Policy, cache: SlotCache, tokens: Int[Tensor, " rows"], lengths: Int[Tensor, " rows"], *, width: int
) -> Float[Tensor, "rows vocabulary"]:
    """Write keys and values of one token of each row, attend to the first `width` places, ask the head.

    Doing it again changes nothing. Nothing of it depends on the host but the shapes: it can be captured.
    """
    plan = DecodeStep(cache, lengths, width)
    states = hidden_states(policy.trunk, tokens, lengths[None], plan, autocast=policy.autocast)
    return logits_of(policy, states)


def logits_of(policy: Policy, states: Float[Tensor, "places width"]) -> Float[Tensor, "places vocabulary"]:
    """The head's logits of hidden states."""
    with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=policy.autocast):
        return policy.head.logits(states)
