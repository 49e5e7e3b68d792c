"""The laws of trust regions."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from nearstep.algorithm.trust_regions import TokenLogprobs, TrustRegion
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.tokens import Tokens, edge_tokens, farther, off_the_edge, random_tokens, unmoved

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FARTHER = 1.5
GREATER = 7.0


def check_trust_region(region: object, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a trust region to its laws. Raises ConformanceError with the first that is broken, and a token as proof.

    Universal laws are what the training loop relies on. The others say what a trust region usually means: `returning`,
    `farther`, `only_sign` and `column_order` hold for ratio and divergence regions alike, `returning` not for dual
    clipping. A region that means something else skips them by name.
    """
    return hold(f"trust region {type(region).__name__}", region, LAWS, skip)


def _mask(region: object, tokens: Tokens) -> Tensor:
    assert isinstance(region, TrustRegion)
    return region.inside(tokens.now, tokens.old, tokens.advantages)


def _protocol(region: object) -> str | None:
    if not isinstance(region, TrustRegion):
        missing = [name for name in ("top_k", "inside") if name not in dir(region)]
        return f"a {type(region).__name__} without {' and '.join(missing)}"
    if isinstance(region.top_k, bool) or not isinstance(region.top_k, int) or region.top_k < 0:
        return f"top_k is {region.top_k!r}"
    return None


def _top_k(region: object) -> int:
    assert isinstance(region, TrustRegion)
    return region.top_k


def _samples(region: object) -> Iterable[Tokens]:
    """Random tokens and edges, with the columns that the region asks for."""
    yield random_tokens(_top_k(region))
    yield edge_tokens(_top_k(region)).to(torch.float32)


def _is_mask(region: object) -> str | None:
    for tokens in _samples(region):
        mask: object = _mask(region, tokens)
        if not isinstance(mask, Tensor):
            return f"inside returned a {type(mask).__name__}"
        if mask.dtype != torch.bool:
            return f"inside returned {mask.dtype}; write a comparison, or .bool()"
        if mask.shape != tokens.advantages.shape:
            return f"inside returned shape {list(mask.shape)} for {len(tokens)} tokens"
    return None


def _empty_batch(region: object) -> str | None:
    mask = _mask(region, random_tokens(_top_k(region)).take(torch.arange(0)))
    fits = mask.dtype == torch.bool and mask.shape == (0,)
    return None if fits else f"for no token it returned {mask.dtype} of shape {list(mask.shape)}"


def _constant_top_k(region: object) -> str | None:
    before = _top_k(region)
    for tokens in _samples(region):
        _mask(region, tokens)
    after = _top_k(region)
    return None if before == after else f"top_k was {before} and is {after} after use"


def _on_policy(region: object) -> str | None:
    for tokens in _samples(region):
        for dtype in DTYPES:
            still = unmoved(tokens).to(dtype)
            found = _first(still, ~_mask(region, still), "dropped")
            if found:
                return found
    return None


def _edges(region: object) -> str | None:
    exact = edge_tokens(_top_k(region))
    found = _differs(exact, _mask(region, exact), _mask(region, off_the_edge(exact)), "next to the edge")
    return f"{found}. Look for 0/0, log 0 and 0·∞" if found else None


def _every_type(region: object) -> str | None:
    for tokens in _samples(region):
        for dtype in DTYPES[:-1]:
            narrow = tokens.to(dtype)
            here, in_double = _mask(region, narrow), _mask(region, narrow.to(torch.float64))
            found = _first(narrow, here & ~in_double, "kept, but dropped when the same numbers are float64")
            found = found or _first(narrow, ~here & in_double, "dropped, but kept when the same numbers are float64")
            if found:
                return f"{found}. Compute in float32 at least (nearstep.algorithm.precision.wide)"
    return None


def _own_token(region: object) -> str | None:
    for tokens in _samples(region):
        whole = _mask(region, tokens)
        backwards = torch.arange(len(tokens)).flip(0)
        found = _differs(tokens, whole, _mask(region, tokens.take(backwards)).flip(0), "with the tokens in reverse")
        halves = [_mask(region, tokens.take(part)) for part in torch.arange(len(tokens)).tensor_split(2)]
        found = found or _differs(tokens, whole, torch.cat(halves), "in a batch of half the size")
        few = torch.arange(0, len(tokens), max(1, len(tokens) // 50))
        alone = torch.cat([_mask(region, tokens.take(place[None])) for place in few])
        found = found or _differs(tokens.take(few), whole[few], alone, "alone")
        if found:
            return found
    return None


def _repeatable(region: object) -> str | None:
    for tokens in _samples(region):
        found = _differs(tokens, _mask(region, tokens), _mask(region, tokens), "when asked again")
        if found:
            return found
    return None


def _inputs_untouched(region: object) -> str | None:
    for tokens in _samples(region):
        before = tokens.copied()
        _mask(region, tokens)
        if not tokens.same_as(before):
            return "log-probs or advantages were changed in place; work on copies"
    return None


def _returning(region: object) -> str | None:
    for tokens in _samples(region):
        rises, falls = tokens.now.sampled > tokens.old.sampled, tokens.now.sampled < tokens.old.sampled
        returns = (rises & (tokens.advantages < 0)) | (falls & (tokens.advantages > 0))
        found = _first(tokens, returns & ~_mask(region, tokens), "dropped on its way back")
        if found:
            return found
    return None


def _farther(region: object) -> str | None:
    for tokens in _samples(region):
        moved = farther(tokens, FARTHER)
        found = _first(tokens, ~_mask(region, tokens) & _mask(region, moved), "dropped")
        if found:
            return f"{found}, but kept {FARTHER} times as far out"
    return None


def _only_sign(region: object) -> str | None:
    for tokens in _samples(region):
        greater = tokens.with_advantages(tokens.advantages * GREATER)
        found = _differs(tokens, _mask(region, tokens), _mask(region, greater), f"{GREATER:g} times the advantage")
        if found:
            return found
    return None


def _column_order(region: object) -> str | None:
    for tokens in _samples(region):
        if tokens.now.top is None or tokens.old.top is None:
            continue
        turned = Tokens(_turned(tokens.now), _turned(tokens.old), tokens.advantages)
        found = _differs(tokens, _mask(region, tokens), _mask(region, turned), "with the top tokens in reverse")
        if found:
            return found
    return None


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


LAWS: tuple[Law[object], ...] = (
    Law("protocol", "it has top_k, a whole number from 0, and inside(now, old, advantages)", _protocol),
    Law("mask", "inside returns one bool for each token, for probabilities from 0 to 1", _is_mask),
    Law("empty_batch", "for no tokens it returns an empty mask", _empty_batch),
    Law("constant_top_k", "top_k does not change", _constant_top_k),
    Law("repeatable", "the same tokens give the same mask again", _repeatable),
    Law("inputs_untouched", "what it is given stays as it is", _inputs_untouched),
    Law("on_policy", "where the policy has not moved, every token is inside", _on_policy),
    Law("edges", "probabilities of exactly 0 and 1 are treated like those next to them", _edges),
    Law("every_type", "the same numbers give the same mask in every floating type", _every_type),
    Law("own_token", "whether a token is inside depends on that token alone", _own_token),
    Law("returning", "a token that the step moves back to where it was keeps its gradient", _returning, False),
    Law("farther", "a token that is dropped is dropped farther out in that direction, too", _farther, False),
    Law("only_sign", "of an advantage only the sign counts", _only_sign, False),
    Law("column_order", "the order of the top tokens does not matter", _column_order, False),
)
