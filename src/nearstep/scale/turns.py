"""When processes that make passes together put rows of their own into one, and when nothing."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from nearstep.scale.backend import Backend

Part = TypeVar("Part")


@runtime_checkable
class TakesTurns(Protocol):
    """A backend whose processes make passes together, each of rows of several of them."""

    def turns(self, tokens: Sequence[int], limit: int) -> list[bool]:
        """For every pass of a step whether this process's next micro-batch goes into it; else it has nothing there.

        `tokens` are those of its micro-batches, `limit` is how many a process has room for. All processes call this.
        """


def equal_passes(backend: Backend) -> bool:
    """Whether a process that has no rows for a pass must make an empty one."""
    return backend.in_step or isinstance(backend, TakesTurns)


def turns_of(parts: Sequence[Part], tokens_of: Callable[[Part], int], limit: int, backend: Backend) -> list[bool]:
    """For every pass of a step whether the next of this process's micro-batches goes into it, or nothing.

    Where processes only gather weights together, nothing comes after the last micro-batch, until all have made as many.
    """
    if isinstance(backend, TakesTurns):
        return backend.turns([tokens_of(part) for part in parts], limit)
    missing = max(backend.gather(len(parts))) - len(parts) if backend.in_step else 0
    return [True] * len(parts) + [False] * missing


def rounds_of(tokens: Sequence[Sequence[int]], limit: int) -> list[tuple[bool, ...]]:
    """Whose next micro-batch goes into each pass, for passes of at most `limit` tokens, or of one micro-batch.

    Who has most tokens left comes first, so that long rows do not all wait for the end.
    """
    left = [list(each) for each in tokens]
    rounds = []
    while any(left):
        room, taken = limit, [False] * len(left)
        for number in sorted(range(len(left)), key=lambda number: -sum(left[number])):
            if left[number] and (left[number][0] <= room or not any(taken)):
                room -= left[number].pop(0)
                taken[number] = True
        rounds.append(tuple(taken))
    return rounds
