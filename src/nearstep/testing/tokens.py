"""The tokens that trust regions are tried on: random ones, near and far, and every jump between the edges of [0, 1]."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nearstep.algorithm.ragged import take_rows
from nearstep.algorithm.trust_regions import ActionRows, TokenLogprobs
from nearstep.common.random_streams import stream

RANDOM_TOKENS = 1500
# Log-probs that every floating type holds exactly: from p = 1 through p = 1 − 1/4096 down to p = 0.
EDGES = (0.0, -(2.0**-12), -(2.0**-6), -0.125, -0.375, -0.75, -1.5, -3.0, -6.0, -12.0, -24.0, -math.inf)
SIGNS = (1.0, -1.0, 0.0)
INSIDE = (-60.0, -1e-13)  # log-probs that are not quite those of 0 and 1, in float64


@dataclass(frozen=True)
class Tokens:
    """What `weight` is given: the policy now and at rollout, advantages, and where rows end."""

    now: TokenLogprobs
    old: TokenLogprobs
    advantages: Tensor
    action_counts: Tensor

    @property
    def rows(self) -> ActionRows:
        """The rows, each sampled by the policy of its own number."""
        return ActionRows(self.action_counts, torch.arange(len(self.action_counts)))

    def __len__(self) -> int:
        return len(self.advantages)

    def take(self, places: Tensor) -> "Tokens":
        """The tokens at the given places, in the given order, each a row of its own."""
        return replace(self._each(lambda numbers: numbers[places]), action_counts=torch.ones_like(places))

    def take_rows(self, rows: Tensor) -> "Tokens":
        """The rows of the given numbers, in the given order."""
        places = take_rows(self.action_counts, rows)
        return replace(self._each(lambda numbers: numbers[places]), action_counts=self.action_counts[rows])

    def to(self, dtype: torch.dtype) -> "Tokens":
        """The same numbers, as near as `dtype` holds them."""
        return self._each(lambda numbers: numbers.to(dtype))

    def copied(self) -> "Tokens":
        """The same numbers in other memory."""
        return self.take_rows(torch.arange(len(self.action_counts)))

    def same_as(self, other: "Tokens") -> bool:
        """Whether all numbers are those of `other`."""
        mine, others = self._tensors(), other._tensors()
        return all(torch.equal(one, two) for one, two in zip(mine, others, strict=True))

    def describe(self, place: int) -> str:
        """One token, for an error message."""
        dtype = str(self.advantages.dtype).removeprefix("torch.")
        numbers = [
            f"{name} p = {float(logprob.double().exp()):.4g} (log p = {float(logprob):.6g})"
            for name, logprob in (("at rollout", self.old.sampled[place]), ("now", self.now.sampled[place]))
        ]
        return f"{', '.join(numbers)}, advantage {float(self.advantages[place]):+.3g}, {dtype}"

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Tokens":
        now, old = changed(self.now, change), changed(self.old, change)
        return replace(self, now=now, old=old, advantages=change(self.advantages))

    def _tensors(self) -> list[Tensor]:
        tops = [top for top in (self.now.top, self.old.top) if top is not None]
        return [self.now.sampled, self.old.sampled, self.advantages, *tops]


def random_tokens(top_k: int) -> Tokens:
    """Sampled tokens of random distributions, sharp and flat, that moved from hardly at all to beyond recognition."""
    draws = stream(0, "conformance/tokens", top_k)
    vocabulary = max(32, 2 * top_k)
    sharpness = torch.linspace(0.3, 5, RANDOM_TOKENS)[:, None]
    old_logits = torch.randn(RANDOM_TOKENS, vocabulary, generator=draws) * sharpness
    distance = (torch.rand(RANDOM_TOKENS, 1, generator=draws) * 1.5).square()
    now = (old_logits + distance * torch.randn(old_logits.shape, generator=draws)).log_softmax(-1)
    old = old_logits.log_softmax(-1)
    sampled = torch.multinomial(old.exp(), 1, generator=draws)
    advantages = torch.randn(RANDOM_TOKENS, generator=draws)
    advantages[::10] = 0
    ids = _top_ids(old, sampled, top_k)
    return Tokens(_logprobs(now, sampled, ids), _logprobs(old, sampled, ids), advantages, row_lengths(RANDOM_TOKENS))


def edge_tokens(top_k: int) -> Tokens:
    """Every pair of edges with every sign of the advantage; what the sampled token leaves is spread over the others."""
    edges = torch.tensor(EDGES, dtype=torch.float64)
    now, old, advantages = (
        axis.flatten() for axis in torch.meshgrid(edges, edges, torch.tensor(SIGNS).double(), indexing="ij")
    )
    return Tokens(_spread(now, top_k), _spread(old, top_k), advantages, row_lengths(len(now)))


def off_the_edge(tokens: Tokens) -> Tokens:
    """The same tokens with every probability of exactly 0 or 1 moved inside by next to nothing."""
    now, old = (changed(policy, lambda logprobs: logprobs.clamp(*INSIDE)) for policy in (tokens.now, tokens.old))
    return replace(tokens, now=now, old=old)


def unmoved(tokens: Tokens) -> Tokens:
    """The same tokens before any step: the policy is still that of the rollout."""
    return replace(tokens, now=tokens.old)


def farther(tokens: Tokens, times: float) -> Tokens:
    """The policy moved on in the same direction: every probability `times` as far from where it was, where possible.

    What would leave [0, 1] stays where it is, so that all of a token's probabilities keep one common factor.
    """
    start, end = (_joined(policy).double().exp() for policy in (tokens.old, tokens.now))
    moved = start + times * (end - start)
    rest = 1 - moved[:, 1:].sum(-1) if moved.shape[1] > 1 else 1 - moved[:, 0]
    possible = (moved > 0).all(-1) & (moved <= 1).all(-1) & (rest >= 0)
    chosen = torch.where(possible[:, None], moved, end).log().to(tokens.advantages.dtype)
    top = None if tokens.now.top is None else chosen[:, 1:]
    return replace(tokens, now=TokenLogprobs(chosen[:, 0], top))


def row_lengths(tokens: int) -> Tensor:
    """Rows of 1 to 12 tokens, one of them empty, and the rest in the last."""
    lengths = [0]
    while tokens > sum(lengths):
        lengths.append(min(len(lengths) % 12 + 1, tokens - sum(lengths)))
    return torch.tensor(lengths)


def _joined(policy: TokenLogprobs) -> Tensor:
    """Sampled token in the first column, top tokens behind it."""
    first = policy.sampled[:, None]
    return first if policy.top is None else torch.cat([first, policy.top], dim=1)


def _top_ids(old: Tensor, sampled: Tensor, top_k: int) -> Tensor:
    """The most probable tokens at rollout; the sampled one takes the last place if it is not among them."""
    ids = old.topk(top_k, dim=-1).indices
    missing = (ids != sampled).all(-1)
    ids[missing, -1:] = sampled[missing, : min(top_k, 1)]
    return ids


def _logprobs(logprobs: Tensor, sampled: Tensor, ids: Tensor) -> TokenLogprobs:
    top = logprobs.gather(-1, ids) if ids.shape[-1] else None
    return TokenLogprobs(logprobs.gather(-1, sampled)[:, 0], top)


def _spread(sampled: Tensor, top_k: int) -> TokenLogprobs:
    """A token's log-prob, and those of top_k − 1 others that share nine tenths of the rest of the mass."""
    if top_k == 0:
        return TokenLogprobs(sampled)
    others = max(top_k - 1, 1)
    share = ((1 - sampled.exp()) * 0.9 / others).log()
    return TokenLogprobs(sampled, torch.cat([sampled[:, None], share[:, None].expand(-1, top_k - 1)], dim=1))


def changed(policy: TokenLogprobs, change: Callable[[Tensor], Tensor]) -> TokenLogprobs:
    """The same change to the sampled tokens and to the top tokens, if there are any."""
    return TokenLogprobs(change(policy.sampled), None if policy.top is None else change(policy.top))
