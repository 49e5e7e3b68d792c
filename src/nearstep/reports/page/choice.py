"""Which rows of many a page shows: the extreme ones always, whole histories of some prompts, the rest at random.

Rows are taken one by one, so that memory depends on what is kept alone, and a run that goes on can be followed. Chance
comes from a hash of the row: the same rows each time.
"""

import heapq
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Generic, TypeAlias, TypeVar

Row: TypeAlias = dict[str, Any]
T = TypeVar("T")
Key: TypeAlias = tuple[int, int]  # update and number of the row


def chance(*of: object) -> int:
    """A number that looks random and is the same for the same things."""
    return int.from_bytes(blake2b(repr(of).encode("utf-8", "backslashreplace"), digest_size=8).digest())


@dataclass
class Best(Generic[T]):
    """The `most` things of the highest rank, of all that were offered."""

    most: int
    _heap: list[tuple[int | float, int, T]] = field(default_factory=list)
    _offered: int = 0

    def offer(self, rank: int | float, thing: T) -> None:
        """Keep it if its rank is high enough; of the same rank the first stays."""
        self._offered += 1
        entry = (rank, -self._offered, thing)
        if len(self._heap) < self.most:
            heapq.heappush(self._heap, entry)
        elif self._heap and entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    @property
    def kept(self) -> list[T]:
        """Those that were kept, in no order."""
        return [thing for _, _, thing in self._heap]


@dataclass
class Families:
    """All rows of as many prompts, picked by chance, as fit into `most` rows."""

    most: int
    _rows: dict[Hashable, list[Row]] = field(default_factory=dict)
    _ranks: list[tuple[int, Hashable]] = field(default_factory=list)  # a heap, the first to go on top
    _below: int = 2**64  # ranks from here on are no longer taken
    _count: int = 0

    def offer(self, prompt: Hashable, row: Row) -> None:
        """Keep it if its prompt is one of those that are followed."""
        if prompt not in self._rows:
            rank = chance(prompt)
            if rank >= self._below:
                return
            self._rows[prompt] = []
            heapq.heappush(self._ranks, (-rank, prompt))
        self._rows[prompt].append(row)
        self._count += 1
        while self._count > self.most and len(self._ranks) > 1:
            rank, left = heapq.heappop(self._ranks)
            self._below = -rank
            self._count -= len(self._rows.pop(left))
        if self._count > self.most:  # of a single prompt: its newest rows
            del self._rows[prompt][0]
            self._count -= 1

    @property
    def kept(self) -> list[Row]:
        """The rows of all prompts that are followed."""
        return [row for rows in self._rows.values() for row in rows]


class RowChoice:
    """At most `most` rows of all that are added, and those that are wanted besides."""

    def __init__(self, most: int, quantities: Sequence[str]) -> None:
        self.count = 0
        self._most = most
        self._wanted: set[Key] = set()
        each = max(1, most // (8 * len(quantities)))  # a quarter of the rows for both ends of all quantities
        self._ends = {name: (Best[Row](each), Best[Row](each)) for name in quantities}
        self._families = Families(most // 4)
        self._spread = Best[Row](most)
        self._asked: list[Row] = []

    def want(self, keys: Iterable[Key]) -> None:
        """Keep these rows, whatever else, where they are still to come."""
        self._wanted.update(keys)

    def add(self, row: Row) -> None:
        """One more row; it has `update`, `episode`, `prompt` and the quantities, None where one is not known."""
        self.count += 1
        if (row["update"], row["episode"]) in self._wanted:
            self._asked.append(row)
        for name, (low, high) in self._ends.items():
            if (number := row[name]) is not None:
                low.offer(-number, row)
                high.offer(number, row)
        self._families.offer(row["prompt"], row)
        self._spread.offer(chance(row["update"], row["episode"]), row)

    def chosen(self) -> list[Row]:
        """The rows in the order of the run; each is there once."""
        ends = [row for both in self._ends.values() for end in both for row in end.kept]
        kept: dict[int, Row] = {id(row): row for row in [*self._asked, *ends]}
        if self.count <= self._most:  # nothing need be left out
            kept |= {id(row): row for row in self._spread.kept}
        else:
            for row in [*self._families.kept, *sorted(self._spread.kept, key=_by_chance, reverse=True)]:
                if len(kept) >= self._most:
                    break
                kept[id(row)] = row
        return sorted(kept.values(), key=lambda row: (row["update"], row["episode"]))

    def rule(self, name: Callable[[str], str]) -> str:
        """How the rows were chosen, in a sentence for the reader."""
        if self.count <= self._most:
            return f"All {self.count:,} rows."
        ends = ", ".join(name(quantity) for quantity, (low, _) in self._ends.items() if low.kept)
        return (
            f"{len(self.chosen()):,} of {self.count:,} rows: the highest and lowest by {ends}; every answer to some "
            "prompts; the others picked at random over the run, the same each time."
        )


def _by_chance(row: Row) -> int:
    return chance(row["update"], row["episode"])
