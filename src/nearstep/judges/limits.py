"""How much a judge may ask: requests and tokens a minute, and a cost that nothing goes beyond."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from nearstep.common.errors import NearstepError
from nearstep.judges.protocol import Usage

MINUTE_SECONDS = 60.0
SHORTEST_WAIT_SECONDS = 0.001
LOOK_AGAIN_SECONDS = 0.02


class LimitReachedError(NearstepError):
    """A question that must not be asked."""


@dataclass
class Taken:
    """What was taken of a limit, and when (seconds); the amount may be corrected once it is known."""

    at: float
    amount: int


class MinuteLimit:
    """At most so much in any minute; None for no limit."""

    def __init__(self, most: int | None, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._what, self._now = most, what, now
        self._taken: deque[Taken] = deque()

    async def take(self, amount: int) -> Taken:
        """Wait until `amount` may be taken. Raises LimitReachedError where that can never be."""
        if self._most is None:
            return Taken(0.0, amount)
        if amount > self._most:
            raise LimitReachedError(f"it may take {amount:,} {self._what}, and {self._most:,} are allowed in a minute")
        while (wait_seconds := self._wait_seconds(amount, self._most)) > 0:
            await asyncio.sleep(wait_seconds)
        self._taken.append(Taken(self._now(), amount))
        return self._taken[-1]

    def _wait_seconds(self, amount: int, most: int) -> float:
        """Until enough of the oldest have left the window; 0 where there is room now."""
        now = self._now()
        while self._taken and self._taken[0].at <= now - MINUTE_SECONDS:
            self._taken.popleft()
        room = most - sum(taken.amount for taken in self._taken)
        for taken in self._taken:
            if room >= amount:
                break
            room += taken.amount
            if room >= amount:
                return max(taken.at + MINUTE_SECONDS - now, SHORTEST_WAIT_SECONDS)
        return 0.0


class Spending:
    """What was spent, and what may still be: the cost of a question is set aside before it is asked.

    So the bound holds whatever the answers cost; tries that broke count as if they had been billed in full.
    """

    def __init__(self, usage: Usage, question_price: float, answer_price: float, max_cost: float | None) -> None:
        self._usage, self._max_cost = usage, max_cost
        self._prices = question_price / 1e6, answer_price / 1e6
        self._set_aside, self._under_way = 0.0, 0  # of tries that have begun, and how many they are

    def cost(self, question_tokens: int, answer_tokens: int) -> float:
        """By the prices per million tokens."""
        return question_tokens * self._prices[0] + answer_tokens * self._prices[1]

    async def set_aside(self, worst: float) -> None:
        """Before a try: what it may cost at most. Waits where tries under way may yet cost less than they might.

        Raises LimitReachedError beyond the bound.
        """
        while self._max_cost is not None and self._spent + self._set_aside + worst > self._max_cost:
            if not self._under_way:
                raise LimitReachedError(
                    f"max_cost = {self._max_cost:g} is reached: {self._spent:.4g} are spent, and a question may cost "
                    f"{worst:.2g}"
                )
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
        self._set_aside += worst
        self._under_way += 1

    @property
    def _spent(self) -> float:
        return self._usage.cost + self._usage.unbilled

    def settle(self, worst: float, *, answered: bool) -> None:
        """After a try: the server has answered, so it counts what it says, or nothing is known of its bill."""
        self._under_way -= 1
        self._set_aside = self._set_aside - worst if self._under_way else 0.0
        if not answered:
            self._usage.unbilled += worst
