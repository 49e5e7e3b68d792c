"""Trust regions that each break one law."""

from dataclasses import dataclass, field

import torch

from nearstep.algorithm.divergences import binary_tv
from nearstep.algorithm.ragged import by_row
from nearstep.algorithm.trust_regions import BinaryTV, TopKTV


def outward(now, old, advantages):
    return ((advantages > 0) & (now > old)) | ((advantages <= 0) & (now < old))


@dataclass(frozen=True)
class NoWholeNumber(BinaryTV):
    top_k: int = -1


class Nothing:
    """Neither top_k nor inside."""


class Mask(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return super().weight(now, old, advantages, rows).bool()


class OneAnswer(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return super().weight(now, old, advantages, rows).all()


class FailsOnNothing(BinaryTV):
    def weight(self, now, old, advantages, rows):
        assert advantages.abs().max() < 1e9
        return super().weight(now, old, advantages, rows)


@dataclass
class CountsUp:
    calls: int = 0

    @property
    def top_k(self):
        return self.calls // 2

    def weight(self, now, old, advantages, rows):
        self.calls += 1
        return torch.ones_like(advantages)


class NeverInside(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return torch.zeros_like(advantages)


class KLInTheGivenType(BinaryTV):
    """A binary KL like TRL's, with no float32 in it: in bfloat16 it is NaN at p = q = 1, infinite at p = 1 (D29)."""

    def weight(self, now, old, advantages, rows):
        log_p, log_q = now.sampled.clamp(min=-60), old.sampled.clamp(min=-60)
        p, q = log_p.exp(), log_q.exp()
        limit = 1 - 1e-7
        rest = torch.log1p(-q.clamp(max=limit)) - torch.log1p(-p.clamp(max=limit))
        divergence = q * (log_q - log_p) + (1 - q) * rest
        return 1.0 - (outward(now.sampled, old.sampled, advantages) & (divergence > 0.05)).float()


class NotANumberIsOutside(BinaryTV):
    """The textbook's formula, without any care at p = 0 and 1: NaN is never below the threshold."""

    def weight(self, now, old, advantages, rows):
        return ((textbook_kl(now, old) <= 0.05) | ~outward(now.sampled, old.sampled, advantages)).float()


class NotANumberIsInside(BinaryTV):
    """The same, and NaN is never above the threshold either."""

    def weight(self, now, old, advantages, rows):
        return 1.0 - ((textbook_kl(now, old) > 0.05) & outward(now.sampled, old.sampled, advantages)).float()


def textbook_kl(now, old):
    p, q = now.sampled.double().exp(), old.sampled.double().exp()
    return q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()


class RelativeToTheBatch(BinaryTV):
    def weight(self, now, old, advantages, rows):
        if len(advantages) == 0:
            return torch.ones_like(advantages)
        moved = binary_tv(now.sampled, old.sampled)
        return 1.0 - (outward(now.sampled, old.sampled, advantages) & (moved > moved.quantile(0.9))).float()


class RelativeToTheRow(BinaryTV):
    """A row is dropped where its first token moved far, and says nothing of it."""

    def weight(self, now, old, advantages, rows):
        moved = binary_tv(now.sampled, old.sampled)
        return by_row(moved, rows.action_counts, lambda row: (row[0] <= 0.15).float().expand_as(row))


class NotFinite(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return super().weight(now, old, advantages, rows) / (now.sampled - old.sampled)


class FallsAsleep(BinaryTV):
    """Every other call it lets everything through."""

    calls: list = []  # noqa: RUF012

    def weight(self, now, old, advantages, rows):
        self.calls.append(None)
        mask = super().weight(now, old, advantages, rows)
        whole = len(advantages) > 1000
        return torch.ones_like(mask) if whole and len(self.calls) % 2 else mask


class WorksInPlace(BinaryTV):
    def weight(self, now, old, advantages, rows):
        mask = super().weight(now, old, advantages, rows)
        now.sampled.clamp_(min=-10)
        return mask


class NoDirection(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return (binary_tv(now.sampled, old.sampled) <= self.high).float()


class WrongDirection(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return super().weight(now, old, -advantages, rows)


class ABand(BinaryTV):
    def weight(self, now, old, advantages, rows):
        moved = binary_tv(now.sampled, old.sampled)
        return 1.0 - (outward(now.sampled, old.sampled, advantages) & (moved > 0.15) & (moved < 0.3)).float()


class GreatAdvantagesOnly(BinaryTV):
    def weight(self, now, old, advantages, rows):
        return super().weight(now, old, advantages, rows).maximum((advantages.abs() < 1).float())


class FirstColumn(TopKTV):
    def weight(self, now, old, advantages, rows):
        moved = binary_tv(now.top[:, 0], old.top[:, 0])
        return 1.0 - (outward(now.sampled, old.sampled, advantages) & (moved > 0.15)).float()


@dataclass(frozen=True)
class AskedForTooFew(BinaryTV):
    """Says that it needs no top tokens, and reads them."""

    weights: list = field(default_factory=list)

    def weight(self, now, old, advantages, rows):
        return (now.top.sum(-1) < 0).float()


BROKEN = {
    "protocol": (Nothing(), NoWholeNumber()),
    "weight": (Mask(), NotFinite(), OneAnswer(), AskedForTooFew()),
    "empty_batch": (FailsOnNothing(),),
    "constant_top_k": (CountsUp(),),
    "on_policy": (NeverInside(),),
    "edges": (NotANumberIsOutside(), NotANumberIsInside()),
    "every_type": (KLInTheGivenType(),),
    "own_row": (RelativeToTheBatch(),),
    "own_token": (RelativeToTheRow(),),
    "repeatable": (FallsAsleep(),),
    "inputs_untouched": (WorksInPlace(),),
    "returning": (NoDirection(), WrongDirection()),
    "farther": (ABand(),),
    "only_sign": (GreatAdvantagesOnly(),),
    "column_order": (FirstColumn(),),
}
