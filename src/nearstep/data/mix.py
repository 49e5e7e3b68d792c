"""How several sources of prompts become one: whose turn it is, and a numbering that runs over all of them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, islice, pairwise
from math import floor

from nearstep.data.prompts import PromptSet, prompts_of, rank_share
from nearstep.types import Prompts


def weighted_round_robin(weights: Sequence[float], first: int = 0) -> Iterator[tuple[int, int]]:
    """Whose turn it is from turn `first` on, endlessly: a source, and how often it had been its turn.

    The k-th turn of a source (from 0) comes at the time (k + ½) / weight, ties in the order of the sources. So every
    run of turns gives each source its share but for one turn or so, and any turn is found without those before it.
    """
    shares = [Fraction(weight) for weight in weights]
    # At this time no more than `first` turns are over, and few less.
    time = max(Fraction(0), (first - Fraction(len(shares), 2)) / sum(shares))
    had = [floor(time * share + Fraction(1, 2)) for share in shares]
    for turn in range(sum(had), first):
        del turn
        had[_next(had, shares)] += 1
    while True:
        source = _next(had, shares)
        yield source, had[source]
        had[source] += 1


def _next(had: Sequence[int], shares: Sequence[Fraction]) -> int:
    return min(range(len(shares)), key=lambda source: ((2 * had[source] + 1) / shares[source], source))


@dataclass(frozen=True)
class PromptMix:
    """The prompts of several data sets, numbered one set after the other.

    `weights` are the shares of the sets in what is played; None for those of their sizes.
    """

    sets: tuple[PromptSet, ...]
    weights: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.sets))

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each set."""
        return self.weights if self.weights is not None else tuple(float(len(prompts)) for prompts in self.sets)

    @property
    def starts(self) -> list[int]:
        """The number of each set's first prompt, and at last the number of all prompts."""
        return [0, *accumulate(map(len, self.sets))]

    @property
    def label(self) -> str:
        """How messages name the data."""
        return "; ".join(prompts.table.label for prompts in self.sets)

    @property
    def columns(self) -> list[str]:
        """The columns of any set that rewards get beside the prompt."""
        return list(dict.fromkeys(column for prompts in self.sets for column in prompts.columns))

    def take(self, numbers: Sequence[int], episodes: Sequence[int]) -> Prompts:
        """The prompts of the given numbers, one row each, for the given episodes."""
        starts = self.starts
        places = {number: bisect_right(starts, number) - 1 for number in set(numbers)}
        read = {number: self.sets[place].prompt(number - starts[place]) for number, place in places.items()}
        return prompts_of([read[number] for number in numbers], self.columns, episodes)

    def in_order(self, chunk_size: int, *, rank: int = 0, world_size: int = 1, repeats: int = 1) -> Iterator[Prompts]:
        """Every prompt in order, `repeats` times in a row, `chunk_size` prompts over all ranks at a time.

        `episodes` are the prompts' numbers × repeats, and on from there. All ranks get equally many chunks; those of
        the last may be empty.
        """
        for start in range(0, len(self), chunk_size):
            share = rank_share(min(chunk_size, len(self) - start), rank, world_size)
            numbers = range(start + share.start, start + share.stop)
            rows = [(number, number * repeats + again) for number in numbers for again in range(repeats)]
            yield self.take([number for number, _ in rows], [episode for _, episode in rows])

    def subset(self, numbers: Sequence[int]) -> "PromptMix":
        """The mix of some of its prompts, in their order; sets of which nothing is left go."""
        chosen = sorted(numbers)
        kept = []
        for place, (start, stop) in enumerate(pairwise(self.starts)):
            own = [number - start for number in chosen if start <= number < stop]
            if own:
                kept.append((place, self.sets[place].subset(own)))
        weights = None if self.weights is None else tuple(self.weights[place] for place, _ in kept)
        return replace(self, sets=tuple(prompts for _, prompts in kept), weights=weights)


def weighted_round_robin_between(weights: Sequence[float], first: int, count: int) -> list[tuple[int, int]]:
    """`count` turns from turn `first` on."""
    return list(islice(weighted_round_robin(weights, first), count))
