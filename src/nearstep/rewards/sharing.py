"""Who asks for rewards where several processes have the same rows: one of them, and the others are told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

Answer = TypeVar("Answer")


@runtime_checkable
class Sharing(Protocol):
    """The processes that have the same rows; a Backend is one."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that asks."""

    def once(self, ask: Callable[[], Answer]) -> Answer:
        """What the one that asks is answered, on all of them."""


@dataclass(frozen=True)
class Alone:
    """A process whose rows no other has."""

    leads: bool = True

    def once(self, ask: Callable[[], Answer]) -> Answer:
        """Ask."""
        return ask()
