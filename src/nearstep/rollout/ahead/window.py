"""Which of the groups under way make up the next batch: first in, first out, with a window past stragglers.

A group are the responses to one prompt. They stand in the order in which their prompts were given out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupUnderWay:
    """What the choice has to know of a group."""

    number: int  # in the order in which prompts were given out
    finished: bool
    oldest: int | None  # newest version alike to the weights of its oldest action; None where nothing is sampled yet


@dataclass(frozen=True)
class StalenessRule:
    """How old a batch may be, and which groups may overtake others.

    With `max_staleness` S and P groups in an update B = (S + 1)·P groups are under way. The window has
    W = max(1, ⌊f·B⌋) places and begins at the oldest group that has not ended, so that at most W − 1 younger ones
    overtake it.
    """

    max_staleness: int
    groups: int  # of an update
    window_share: float
    drops: bool  # groups that would become too old, rather than wait for them

    @property
    def capacity(self) -> int:
        """Groups under way."""
        return (self.max_staleness + 1) * self.groups

    @property
    def window(self) -> int:
        """Places of the window."""
        return max(1, math.floor(self.window_share * self.capacity))

    def last_update(self, group: GroupUnderWay) -> float:
        """The last update that may train on a group."""
        return math.inf if group.oldest is None else float(group.oldest + self.max_staleness)


@dataclass(frozen=True)
class Choice:
    """What is to be done now, by the numbers of groups."""

    batch: tuple[int, ...] | None  # None where some are still to come
    too_old: tuple[int, ...] = ()  # with the batch gone, no update may train on them any more


def choose(groups: Sequence[GroupUnderWay], rule: StalenessRule, update: int) -> Choice:
    """The batch of an update from the groups under way, which stand in their order."""
    return _choose_and_drop(groups, rule, update) if rule.drops else _choose_and_wait(groups, rule, update)


def _choose_and_wait(groups: Sequence[GroupUnderWay], rule: StalenessRule, update: int) -> Choice:
    """The first that have ended, as far as the window reaches, if all others can still be trained on in time; else
    those of them that have the least time; else there is none yet.
    """
    by_window = _by_window(groups, rule)[: rule.groups]
    if len(by_window) < rule.groups:
        return Choice(None)
    by_time = sorted(groups, key=lambda group: (rule.last_update(group), group.number))
    least_time = [group for group in by_time if group.finished][: rule.groups]
    for chosen in (by_window, least_time):
        if _in_time([group for group in by_time if group not in chosen], rule, update):
            return Choice(_numbers(chosen))
    if any(not group.finished for group in groups):
        return Choice(None)
    # No order keeps all of them in time, which happens only where a run goes on with other numbers than it began with.
    late = [group for group in by_time if group not in least_time and rule.last_update(group) <= update]
    return Choice(_numbers(least_time), too_old=_numbers(late))


def _choose_and_drop(groups: Sequence[GroupUnderWay], rule: StalenessRule, update: int) -> Choice:
    """First those that no later update may train on, then the first others, as far as the window reaches. Once they are
    a batch, what no later update may train on is left behind."""
    due = [group for group in groups if rule.last_update(group) <= update]
    others = [group for group in groups if group not in due]
    ended = [group for group in due if group.finished]
    chosen = [*ended, *_by_window(others, rule)][: rule.groups]
    if len(chosen) < rule.groups:
        return Choice(None)
    return Choice(_numbers(chosen), too_old=_numbers([group for group in due if group not in chosen]))


def _by_window(groups: Sequence[GroupUnderWay], rule: StalenessRule) -> list[GroupUnderWay]:
    """Those that have ended, from the oldest on, as far as the window reaches from the first that has not."""
    held = next((group.number for group in groups if not group.finished), math.inf)
    return [group for group in groups if group.finished and group.number < held + rule.window]


def _in_time(left: Sequence[GroupUnderWay], rule: StalenessRule, update: int) -> bool:
    """Whether later updates can train on all that are left, which stand by their last updates."""
    return all(rule.last_update(group) >= update + 1 + place // rule.groups for place, group in enumerate(left))


def _numbers(groups: Sequence[GroupUnderWay]) -> tuple[int, ...]:
    return tuple(sorted(group.number for group in groups))
