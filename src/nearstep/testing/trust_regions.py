"""The laws of trust regions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from nearstep.algorithm.ragged import take_rows
from nearstep.algorithm.trust_regions import DeclaresExceptions, TokenLogprobs, TrustRegion
from nearstep.testing.kinds import lacks
from nearstep.testing.law import CheckResult, Law, hold
from nearstep.testing.tokens import Tokens, edge_tokens, farther, off_the_edge, random_tokens, unmoved

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
FARTHER = 1.5
GREATER = 7.0
TOLERANCE = 1e-4

OnTokens: TypeAlias = Callable[[TrustRegion, Tokens], str | None]


def check_trust_region(region: Any, *, skip: Sequence[str] = ()) -> CheckResult:
    """Hold a trust region to its laws. Raises ConformanceError with the first that is broken, and a token as proof.

    Universal laws are what the training loop relies on. The others say what a trust region usually means; a region that
    means something else skips them by name, or names them itself, with the reason (`DeclaresExceptions`).
    """
    declared = region.exceptions if isinstance(region, DeclaresExceptions) else {}
    return hold(f"trust region {type(region).__name__}", region, LAWS, tuple(dict.fromkeys((*skip, *declared))))


def _weight(region: TrustRegion, tokens: Tokens) -> Tensor:
    return region.weight(tokens.now, tokens.old, tokens.advantages, tokens.rows)


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


def _is_weight(region: TrustRegion, tokens: Tokens) -> str | None:
    weight: object = _weight(region, tokens)
    if not isinstance(weight, Tensor):
        return f"weight returned a {type(weight).__name__}"
    if not weight.is_floating_point():
        return f"weight returned {weight.dtype}; of a comparison return .float()"
    if weight.shape != tokens.advantages.shape:
        return f"weight returned shape {list(weight.shape)} for {len(tokens)} tokens"
    found = _first(tokens, ~weight.isfinite(), "a weight that is not finite")
    return f"{found}. A log-prob may be -inf: look for ∞ - ∞ and 0·∞, or clamp log-probs first" if found else None


def _empty_batch(region: TrustRegion) -> str | None:
    weight = _weight(region, random_tokens(region.top_k).take(torch.arange(0)))
    fits = weight.is_floating_point() and weight.shape == (0,)
    return None if fits else f"for no token it returned {weight.dtype} of shape {list(weight.shape)}"


def _constant_top_k(region: TrustRegion) -> str | None:
    before = region.top_k
    for tokens in _samples(region):
        _weight(region, tokens)
    return None if before == region.top_k else f"top_k was {before} and is {region.top_k} after use"


def _on_policy(region: TrustRegion, tokens: Tokens) -> str | None:
    for dtype in DTYPES:
        still = unmoved(tokens).to(dtype)
        if found := _first(still, _weight(region, still) != 1, "its weight is not 1"):
            return found
    return None


def _edges(region: TrustRegion) -> str | None:
    exact = edge_tokens(region.top_k)
    found = _differs(exact, _weight(region, exact), _weight(region, off_the_edge(exact)), "next to the edge")
    return f"{found}. Look for 0/0, log 0 and 0·∞" if found else None


def _every_type(region: TrustRegion, tokens: Tokens) -> str | None:
    for dtype in DTYPES[:-1]:
        narrow = tokens.to(dtype)
        found = _differs(
            narrow,
            _weight(region, narrow),
            _weight(region, narrow.to(torch.float64)),
            "when the same numbers are float64",
        )
        if found:
            return f"{found}. Compute in float32 at least (nearstep.algorithm.precision.wide)"
    return None


def _own_token(region: TrustRegion, tokens: Tokens) -> str | None:
    apart = _weight(region, tokens.take(torch.arange(len(tokens))))
    return _differs(tokens, _weight(region, tokens), apart, "in a row of its own")


def _own_row(region: TrustRegion, tokens: Tokens) -> str | None:
    whole, rows = _weight(region, tokens), torch.arange(len(tokens.action_counts))
    backwards = _weight(region, tokens.take_rows(rows.flip(0))).split(tokens.action_counts.flip(0).tolist())
    found = _differs(tokens, whole, torch.cat(backwards[::-1]), "with the rows in reverse")
    halves = [_weight(region, tokens.take_rows(part)) for part in rows.tensor_split(2)]
    found = found or _differs(tokens, whole, torch.cat(halves), "in a batch of half the size")
    few = rows[:: max(1, len(rows) // 50)]
    alone = torch.cat([_weight(region, tokens.take_rows(row[None])) for row in few])
    places = take_rows(tokens.action_counts, few)
    return found or _differs(tokens.take_rows(few), whole[places], alone, "alone")


def _repeatable(region: TrustRegion, tokens: Tokens) -> str | None:
    return _differs(tokens, _weight(region, tokens), _weight(region, tokens), "when asked again")


def _inputs_untouched(region: TrustRegion, tokens: Tokens) -> str | None:
    before = tokens.copied()
    _weight(region, tokens)
    return None if tokens.same_as(before) else "log-probs or advantages were changed in place; work on copies"


def _returning(region: TrustRegion, tokens: Tokens) -> str | None:
    rises, falls = tokens.now.sampled > tokens.old.sampled, tokens.now.sampled < tokens.old.sampled
    returns = (rises & (tokens.advantages < 0)) | (falls & (tokens.advantages > 0))
    return _first(tokens, returns & (_weight(region, tokens) < 1 - TOLERANCE), "damped on its way back")


def _farther(region: TrustRegion, tokens: Tokens) -> str | None:
    near, moved = _weight(region, tokens), _weight(region, farther(tokens, FARTHER))
    returns = (tokens.now.sampled - tokens.old.sampled) * tokens.advantages < 0
    found = _first(tokens, ~returns & (moved > near + TOLERANCE * near.abs().clamp(min=1)), "moving out")
    return f"{found}, its weight is greater {FARTHER} times as far out" if found else None


def _only_sign(region: TrustRegion, tokens: Tokens) -> str | None:
    greater = replace(tokens, advantages=tokens.advantages * GREATER)
    return _differs(tokens, _weight(region, tokens), _weight(region, greater), f"at {GREATER:g} times the advantage")


def _column_order(region: TrustRegion, tokens: Tokens) -> str | None:
    turned = replace(tokens, now=_turned(tokens.now), old=_turned(tokens.old))
    return _differs(tokens, _weight(region, tokens), _weight(region, turned), "with the top tokens in reverse")


def _turned(policy: TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(policy.sampled, None if policy.top is None else policy.top.flip(1))


def _differs(tokens: Tokens, weight: Tensor, other: Tensor, where: str) -> str | None:
    if other.shape != weight.shape:
        return f"{len(weight)} answers, but {len(other)} {where}"
    same = torch.isclose(weight.double(), other.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    if bool(same.all()):
        return None
    place = int((~same).nonzero()[0])
    return _first(tokens, ~same, f"its weight is {float(weight[place]):g}, but {float(other[place]):g} {where}")


def _first(tokens: Tokens, wrong: Tensor, reason: str) -> str | None:
    """The first token where `wrong` is true, described."""
    places = wrong.nonzero()
    return f"{tokens.describe(int(places[0]))}: {reason}" if len(places) else None


LAWS: tuple[Law[TrustRegion], ...] = (
    Law("protocol", "it has top_k, a whole number from 0, and weight(now, old, advantages, rows)", _protocol),
    Law(
        "weight", "weight returns a finite float for each token, for probabilities from 0 to 1", _on_samples(_is_weight)
    ),
    Law("empty_batch", "for no tokens it returns no weights", _empty_batch),
    Law("constant_top_k", "top_k does not change", _constant_top_k),
    Law("repeatable", "the same tokens give the same weights again", _on_samples(_repeatable)),
    Law("inputs_untouched", "what it is given stays as it is", _on_samples(_inputs_untouched)),
    Law("on_policy", "where the policy has not moved, every weight is 1", _on_samples(_on_policy)),
    Law("edges", "probabilities of exactly 0 and 1 are treated like those next to them", _edges),
    Law("every_type", "the same numbers give the same weights in every floating type", _on_samples(_every_type)),
    Law("own_row", "the weights of a row depend on that row alone", _on_samples(_own_row)),
    Law("own_token", "the weight of a token depends on that token alone", _on_samples(_own_token), False),
    Law(
        "returning",
        "a token that the step moves back to where it was is not damped",
        _on_samples(_returning),
        False,
    ),
    Law("farther", "farther out in the same direction the weight is no greater", _on_samples(_farther), False),
    Law("only_sign", "of an advantage only the sign counts", _on_samples(_only_sign), False),
    Law("column_order", "the order of the top tokens does not matter", _on_samples(_column_order), False),
)
