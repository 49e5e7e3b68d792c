"""Trust regions that each break one law."""

from dataclasses import dataclass, field

import torch

from nearstep.algorithm.divergences import binary_tv
from nearstep.algorithm.trust_regions import BinaryTV, TopKTV


def outward(now, old, advantages):
    return ((advantages > 0) & (now > old)) | ((advantages <= 0) & (now < old))


@dataclass(frozen=True)
class NoWholeNumber(BinaryTV):
    top_k: int = -1


class Nothing:
    """Neither top_k nor inside."""


class Weights(BinaryTV):
    def inside(self, now, old, advantages):
        return super().inside(now, old, advantages).float()


class OneAnswer(BinaryTV):
    def inside(self, now, old, advantages):
        return super().inside(now, old, advantages).all()


class FailsOnNothing(BinaryTV):
    def inside(self, now, old, advantages):
        assert advantages.abs().max() < 1e9
        return super().inside(now, old, advantages)


@dataclass
class CountsUp:
    calls: int = 0

    @property
    def top_k(self):
        return self.calls // 2

    def inside(self, now, old, advantages):
        self.calls += 1
        return torch.ones_like(advantages, dtype=torch.bool)


class NeverInside(BinaryTV):
    def inside(self, now, old, advantages):
        return torch.zeros_like(advantages, dtype=torch.bool)


class KLInTheGivenType(BinaryTV):
    """A binary KL like TRL's, with no float32 in it: in bfloat16 it is NaN at p = q = 1, infinite at p = 1 (D29)."""

    def inside(self, now, old, advantages):
        log_p, log_q = now.sampled.clamp(min=-60), old.sampled.clamp(min=-60)
        p, q = log_p.exp(), log_q.exp()
        limit = 1 - 1e-7
        rest = torch.log1p(-q.clamp(max=limit)) - torch.log1p(-p.clamp(max=limit))
        divergence = q * (log_q - log_p) + (1 - q) * rest
        return ~(outward(now.sampled, old.sampled, advantages) & (divergence > 0.05))


class NotANumberIsOutside(BinaryTV):
    """The textbook's formula, without any care at p = 0 and 1: NaN is never below the threshold."""

    def inside(self, now, old, advantages):
        return (textbook_kl(now, old) <= 0.05) | ~outward(now.sampled, old.sampled, advantages)


class NotANumberIsInside(BinaryTV):
    """The same, and NaN is never above the threshold either."""

    def inside(self, now, old, advantages):
        return ~((textbook_kl(now, old) > 0.05) & outward(now.sampled, old.sampled, advantages))


def textbook_kl(now, old):
    p, q = now.sampled.double().exp(), old.sampled.double().exp()
    return q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()


class RelativeToTheBatch(BinaryTV):
    def inside(self, now, old, advantages):
        if len(advantages) == 0:
            return torch.ones_like(advantages, dtype=torch.bool)
        moved = binary_tv(now.sampled, old.sampled)
        return ~(outward(now.sampled, old.sampled, advantages) & (moved > moved.quantile(0.9)))


class FallsAsleep(BinaryTV):
    """Every other call it lets everything through."""

    calls: list = []  # noqa: RUF012

    def inside(self, now, old, advantages):
        self.calls.append(None)
        mask = super().inside(now, old, advantages)
        whole = len(advantages) > 1000
        return mask | True if whole and len(self.calls) % 2 else mask


class WorksInPlace(BinaryTV):
    def inside(self, now, old, advantages):
        mask = super().inside(now, old, advantages)
        now.sampled.clamp_(min=-10)
        return mask


class NoDirection(BinaryTV):
    def inside(self, now, old, advantages):
        return binary_tv(now.sampled, old.sampled) <= self.high


class WrongDirection(BinaryTV):
    def inside(self, now, old, advantages):
        return super().inside(now, old, -advantages)


class ABand(BinaryTV):
    def inside(self, now, old, advantages):
        moved = binary_tv(now.sampled, old.sampled)
        return ~(outward(now.sampled, old.sampled, advantages) & (moved > 0.15) & (moved < 0.3))


class GreatAdvantagesOnly(BinaryTV):
    def inside(self, now, old, advantages):
        return super().inside(now, old, advantages) | (advantages.abs() < 1)


class FirstColumn(TopKTV):
    def inside(self, now, old, advantages):
        moved = binary_tv(now.top[:, 0], old.top[:, 0])
        return ~(outward(now.sampled, old.sampled, advantages) & (moved > 0.15))


@dataclass(frozen=True)
class AskedForTooFew(BinaryTV):
    """Says that it needs no top tokens, and reads them."""

    weights: list = field(default_factory=list)

    def inside(self, now, old, advantages):
        return now.top.sum(-1) < 0


BROKEN = {
    "protocol": (Nothing(), NoWholeNumber()),
    "mask": (Weights(), OneAnswer(), AskedForTooFew()),
    "empty_batch": (FailsOnNothing(),),
    "constant_top_k": (CountsUp(),),
    "on_policy": (NeverInside(),),
    "edges": (NotANumberIsOutside(), NotANumberIsInside()),
    "every_type": (KLInTheGivenType(),),
    "own_token": (RelativeToTheBatch(),),
    "repeatable": (FallsAsleep(),),
    "inputs_untouched": (WorksInPlace(),),
    "returning": (NoDirection(), WrongDirection()),
    "farther": (ABand(),),
    "only_sign": (GreatAdvantagesOnly(),),
    "column_order": (FirstColumn(),),
}
