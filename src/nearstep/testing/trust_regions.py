"""The laws of trust regions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nearstep.algorithm.trust_regions import TokenLogprobs, TrustRegion
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.tokens import Tokens, edge_tokens, farther, off_the_edge, random_tokens, unmoved

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FARTHER = 1.5
GREATER = 7.0

OnTokens: TypeAlias = Callable[[TrustRegion, Tokens], str | None]


def check_trust_region(region: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a trust region to its laws. Raises ConformanceError with the first that is broken, and a token as proof.

    Universal laws are what the training loop relies on. The others say what a trust region usually means: `returning`,
    `farther`, `only_sign` and `column_order` hold for ratio and divergence regions alike, `returning` not for dual
    clipping. A region that means something else skips them by name.
    """
    return hold(f"trust region {type(region).__name__}", region, LAWS, skip)


def _mask(region: TrustRegion, tokens: Tokens) -> Tensor:
    return region.inside(tokens.now, tokens.old, tokens.advantages)


def _samples(region: TrustRegion) -> list[Tokens]:
    """Random tokens and edges, with the columns that the region asks for."""
    return [random_tokens(region.top_k), edge_tokens(region.top_k).to(torch.float32)]


def _on_samples(holds: OnTokens) -> Callable[[TrustRegion], str | None]:
    """What breaks a law that is to hold for each of the samples."""

    def counterexample(region: TrustRegion) -> str | None:
        return next((found for tokens in _samples(region) if (found := holds(region, tokens))), None)

    return counterexample


def _protocol(region: Any) -> str | None:
    missing = lacks(region, "trust_region")
    if missing:
        return missing
    is_count = isinstance(region.top_k, int) and not isinstance(region.top_k, bool) and region.top_k >= 0
    return None if is_count else f"top_k is {region.top_k!r}"


def _is_mask(region: TrustRegion, tokens: Tokens) -> str | None:
    mask: object = _mask(region, tokens)
    if not isinstance(mask, Tensor):
        return f"inside returned a {type(mask).__name__}"
    if mask.dtype != torch.bool:
        return f"inside returned {mask.dtype}; write a comparison, or .bool()"
    if mask.shape != tokens.advantages.shape:
        return f"inside returned shape {list(mask.shape)} for {len(tokens)} tokens"
    return None


def _empty_batch(region: TrustRegion) -> str | None:
    mask = _mask(region, random_tokens(region.top_k).take(torch.arange(0)))
    fits = mask.dtype == torch.bool and mask.shape == (0,)
    return None if fits else f"for no token it returned {mask.dtype} of shape {list(mask.shape)}"


def _constant_top_k(region: TrustRegion) -> str | None:
    before = region.top_k
    for tokens in _samples(region):
        _mask(region, tokens)
    return None if before == region.top_k else f"top_k was {before} and is {region.top_k} after use"


def _on_policy(region: TrustRegion, tokens: Tokens) -> str | None:
    for dtype in DTYPES:
        still = unmoved(tokens).to(dtype)
        if found := _first(still, ~_mask(region, still), "dropped"):
            return found
    return None


def _edges(region: TrustRegion) -> str | None:
    exact = edge_tokens(region.top_k)
    found = _differs(exact, _mask(region, exact), _mask(region, off_the_edge(exact)), "next to the edge")
    return f"{found}. Look for 0/0, log 0 and 0·∞" if found else None


def _every_type(region: TrustRegion, tokens: Tokens) -> str | None:
    for dtype in DTYPES[:-1]:
        narrow = tokens.to(dtype)
        found = _differs(
            narrow, _mask(region, narrow), _mask(region, narrow.to(torch.float64)), "when the same numbers are float64"
        )
        if found:
            return f"{found}. Compute in float32 at least (nearstep.algorithm.precision.wide)"
    return None


def _own_token(region: TrustRegion, tokens: Tokens) -> str | None:
    whole = _mask(region, tokens)
    backwards = torch.arange(len(tokens)).flip(0)
    found = _differs(tokens, whole, _mask(region, tokens.take(backwards)).flip(0), "with the tokens in reverse")
    halves = [_mask(region, tokens.take(part)) for part in torch.arange(len(tokens)).tensor_split(2)]
    found = found or _differs(tokens, whole, torch.cat(halves), "in a batch of half the size")
    few = torch.arange(0, len(tokens), max(1, len(tokens) // 50))
    alone = torch.cat([_mask(region, tokens.take(place[None])) for place in few])
    return found or _differs(tokens.take(few), whole[few], alone, "alone")


def _repeatable(region: TrustRegion, tokens: Tokens) -> str | None:
    return _differs(tokens, _mask(region, tokens), _mask(region, tokens), "when asked again")


def _inputs_untouched(region: TrustRegion, tokens: Tokens) -> str | None:
    before = tokens.copied()
    _mask(region, tokens)
    return None if tokens.same_as(before) else "log-probs or advantages were changed in place; work on copies"


def _returning(region: TrustRegion, tokens: Tokens) -> str | None:
    rises, falls = tokens.now.sampled > tokens.old.sampled, tokens.now.sampled < tokens.old.sampled
    returns = (rises & (tokens.advantages < 0)) | (falls & (tokens.advantages > 0))
    return _first(tokens, returns & ~_mask(region, tokens), "dropped on its way back")


def _farther(region: TrustRegion, tokens: Tokens) -> str | None:
    moved = farther(tokens, FARTHER)
    found = _first(tokens, ~_mask(region, tokens) & _mask(region, moved), "dropped")
    return f"{found}, but kept {FARTHER} times as far out" if found else None


def _only_sign(region: TrustRegion, tokens: Tokens) -> str | None:
    greater = replace(tokens, advantages=tokens.advantages * GREATER)
    return _differs(tokens, _mask(region, tokens), _mask(region, greater), f"{GREATER:g} times the advantage")


def _column_order(region: TrustRegion, tokens: Tokens) -> str | None:
    turned = Tokens(_turned(tokens.now), _turned(tokens.old), tokens.advantages)
    return _differs(tokens, _mask(region, tokens), _mask(region, turned), "with the top tokens in reverse")


def _turned(policy: TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(policy.sampled, None if policy.top is None else policy.top.flip(1))


def _differs(tokens: Tokens, mask: Tensor, other: Tensor, where: str) -> str | None:
    if other.shape != mask.shape:
        return f"{len(mask)} answers, but {len(other)} {where}"
    found = _first(tokens, mask & ~other, f"kept, but dropped {where}")
    return found or _first(tokens, ~mask & other, f"dropped, but kept {where}")


def _first(tokens: Tokens, wrong: Tensor, reason: str) -> str | None:
    """The first token where `wrong` is true, described."""
    places = wrong.nonzero()
    return f"{tokens.describe(int(places[0]))}: {reason}" if len(places) else None


LAWS: tuple[Law[TrustRegion], ...] = (
    Law("protocol", "it has top_k, a whole number from 0, and inside(now, old, advantages)", _protocol),
    Law("mask", "inside returns one bool for each token, for probabilities from 0 to 1", _on_samples(_is_mask)),
    Law("empty_batch", "for no tokens it returns an empty mask", _empty_batch),
    Law("constant_top_k", "top_k does not change", _constant_top_k),
    Law("repeatable", "the same tokens give the same mask again", _on_samples(_repeatable)),
    Law("inputs_untouched", "what it is given stays as it is", _on_samples(_inputs_untouched)),
    Law("on_policy", "where the policy has not moved, every token is inside", _on_samples(_on_policy)),
    Law("edges", "probabilities of exactly 0 and 1 are treated like those next to them", _edges),
    Law("every_type", "the same numbers give the same mask in every floating type", _on_samples(_every_type)),
    Law("own_token", "whether a token is inside depends on that token alone", _on_samples(_own_token)),
    Law(
        "returning",
        "a token that the step moves back to where it was keeps its gradient",
        _on_samples(_returning),
        False,
    ),
    Law(
        "farther", "a token that is dropped is dropped farther out in that direction, too", _on_samples(_farther), False
    ),
    Law("only_sign", "of an advantage only the sign counts", _on_samples(_only_sign), False),
    Law("column_order", "the order of the top tokens does not matter", _on_samples(_column_order), False),
)
