"""Which prompts a run draws next: in the order of the data, shuffled, or by how hard they were when last seen."""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from nearstep.common.errors import TrainingError, shorten
from nearstep.common.random_streams import stream
from nearstep.data.mix import weighted_round_robin_between


@dataclass(frozen=True)
class Draw:
    """What a sampler is asked for, the same on every process.

    Prompts are numbered from 0, one data set after the other. `random` belongs to this draw alone: it derives from the
    seed and `first`, so that a resumed run draws the same.
    """

    count: int  # prompts that are wanted, over all processes
    first: int  # prompts that the run has drawn before
    sizes: tuple[int, ...]  # prompts of each data set
    shares: tuple[float, ...]  # weight of each data set in what is drawn
    seed: int  # of the run
    random: torch.Generator

    @property
    def prompts(self) -> int:
        """How many there are to draw from."""
        return sum(self.sizes)


@runtime_checkable
class Sampler(Protocol):
    """Chooses prompts. One that learns has more members: those of SeesScores, and of Remembers with them."""

    def choose(self, draw: Draw) -> Sequence[int]:
        """The numbers of the prompts that are drawn, `draw.count` of them, each from 0 to `draw.prompts` − 1.

        The same wherever it is asked with the same draw after the same scores.
        """


@runtime_checkable
class SeesScores(Protocol):
    """A sampler that is told how the prompts it drew were answered, before it is asked again."""

    def seen(self, numbers: Sequence[int], means: Sequence[float]) -> None:
        """The mean score of the responses to each prompt of a draw, as the rewards gave it; NaN where none was scored.

        The same numbers on every process, those of prompts whose group a gate dropped among them.
        """


def numbers_of(sampler: Sampler, draw: Draw) -> list[int]:
    """What a sampler draws. Raises TrainingError where that are not so many prompts that are there."""
    found = list(sampler.choose(draw))
    problem = draw_problem(found, draw)
    if problem is not None:
        raise TrainingError(f"sampler {type(sampler).__name__}: {problem}")
    return found


def draw_problem(found: Sequence[object], draw: Draw) -> str | None:
    """What is wrong with the numbers of a draw, in words; None where nothing is."""
    if len(found) != draw.count:
        return f"choose gave {len(found)} numbers for a draw of {draw.count} prompts"
    wrong = [each for each in found if isinstance(each, bool) or not isinstance(each, int)]
    if wrong:
        return f"choose gave {shorten(wrong[0])} ({type(wrong[0]).__name__}); give whole numbers of Python"
    outside = [each for each in found if isinstance(each, int) and not 0 <= each < draw.prompts]
    return f"choose gave {outside[0]}, and prompts have the numbers 0 to {draw.prompts - 1}" if outside else None


@dataclass(frozen=True)
class Passes:
    """Every prompt once in a pass, then again: in the order of the data, or in one that each pass has of its own.

    Several data sets take turns by their shares, and each has passes of its own. A pure function of seed and place: it
    has nothing to remember.
    """

    shuffle: bool = True
    # The orders that the newest draw needed, by set and pass: a pass is shuffled once, not for every draw.
    _orders: dict[tuple[int, int], Sequence[int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def choose(self, draw: Draw) -> list[int]:
        """See Sampler.choose."""
        starts = [sum(draw.sizes[:place]) for place in range(len(draw.sizes))]
        turns = weighted_round_robin_between(draw.shares, draw.first, draw.count)
        passes = [(place, *divmod(count, draw.sizes[place])) for place, count in turns]
        orders = self._orders_of({(place, number) for place, number, _ in passes}, draw)
        return [starts[place] + orders[place, number][index] for place, number, index in passes]

    def _orders_of(self, keys: set[tuple[int, int]], draw: Draw) -> dict[tuple[int, int], Sequence[int]]:
        """The orders of these passes; those that are no longer asked for are let go."""
        orders = {key: self._orders[key] if key in self._orders else self._order(*key, draw) for key in keys}
        self._orders.clear()
        self._orders.update(orders)
        return orders

    def _order(self, place: int, number: int, draw: Draw) -> Sequence[int]:
        """The order of a set's prompts in one of its passes."""
        count = draw.sizes[place]
        if not self.shuffle:
            return range(count)
        position = (number,) if place == 0 else (number, place)
        order = torch.randperm(count, generator=stream(draw.seed, "prompts", *position))
        return array("q", order.numpy().tobytes())  # 8 bytes for each prompt, and plain ints when read


@dataclass
class DifficultyPools:
    """Pools of prompts by the mean score last seen of each, every pool with a share of what is drawn.

    A prompt whose mean is at least `borders[k]` and below the next border lies in pool k + 1; those of which nothing
    was seen have a pool of their own, whose weight comes last. A pool that is empty, or all of whose prompts are drawn,
    leaves its share to the others. No prompt is drawn twice in a draw, unless more are wanted than there are. With
    binary rewards the signal is greatest where about half of the answers are right (2605.05112).
    """

    borders: tuple[float, ...] = (0.2, 0.8)
    weights: tuple[float, ...] = (1.0, 4.0, 1.0, 4.0)
    # The mean last seen of each prompt, NaN where there is none; as long as the data once the first draw is asked for.
    _means: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64), init=False, repr=False)

    def choose(self, draw: Draw) -> list[int]:
        """See Sampler.choose."""
        if len(self._means) != draw.prompts:
            self._means = torch.full((draw.prompts,), torch.nan, dtype=torch.float64)
        pools = [pool[torch.randperm(len(pool), generator=draw.random)] for pool in self._pools()]
        sizes, drawn = [len(pool) for pool in pools], list[Tensor]()
        while (left := draw.count - sum(map(len, drawn))) > 0:
            drawn += [pool[:count] for pool, count in zip(pools, quotas(sizes, self.weights, left), strict=True)]
        numbers = torch.cat(drawn)
        shuffled: list[int] = numbers[torch.randperm(len(numbers), generator=draw.random)].tolist()
        return shuffled

    def seen(self, numbers: Sequence[int], means: Sequence[float]) -> None:
        """See SeesScores.seen. What is known of a prompt is its newest mean."""
        for number, mean in zip(numbers, means, strict=True):
            if not math.isnan(mean):
                self._means[number] = mean

    def state_dict(self) -> dict[str, Any]:
        """The means by prompt."""
        known = (~self._means.isnan()).nonzero().flatten()
        return {"prompts": len(self._means), "numbers": known.tolist(), "means": self._means[known].tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know what `state_dict` gave, and nothing else."""
        self._means = torch.full((state["prompts"],), torch.nan, dtype=torch.float64)
        self._means[torch.tensor(state["numbers"], dtype=torch.long)] = torch.tensor(
            state["means"], dtype=torch.float64
        )

    def metrics(self) -> dict[str, float]:
        """The share of all prompts in each pool, and that of prompts of which nothing was seen."""
        *by_mean, unseen = [len(pool) / max(len(self._means), 1) for pool in self._pools()]
        return {**{f"pool_{number}": share for number, share in enumerate(by_mean, start=1)}, "unseen": unseen}

    def _pools(self) -> list[Tensor]:
        """The numbers in each pool, in order; those of which nothing was seen come last."""
        unseen, borders = self._means.isnan(), torch.tensor(self.borders, dtype=torch.float64)
        places = torch.bucketize(self._means, borders, right=True)
        by_mean = [((places == place) & ~unseen).nonzero().flatten() for place in range(len(self.borders) + 1)]
        return [*by_mean, unseen.nonzero().flatten()]


def quotas(sizes: Sequence[int], weights: Sequence[float], count: int) -> list[int]:
    """How many of `count` each pool gives: its share by weight, no more than it holds; all where fewer are there.

    Of shares that are no whole numbers the greatest remainders are rounded up, ties in the order of the pools. A pool
    of weight 0 gives only what no other can.

    >>> quotas([10, 1, 10], [1.0, 1.0, 2.0], 8)
    [2, 1, 5]
    """
    found, count = [0] * len(sizes), min(count, sum(sizes))
    while (left := count - sum(found)) > 0:
        open_ = [place for place, size in enumerate(sizes) if found[place] < size]
        weighted = {place: weights[place] for place in open_ if weights[place] > 0} or dict.fromkeys(open_, 1.0)
        total = sum(weighted.values())
        shares = {place: left * weight / total for place, weight in weighted.items()}
        given = {place: int(share) for place, share in shares.items()}
        remainders = sorted(shares, key=lambda place: (given[place] - shares[place], place))
        for place in remainders[: left - sum(given.values())]:
            given[place] += 1
        for place, more in given.items():
            found[place] = min(sizes[place], found[place] + more)
    return found
