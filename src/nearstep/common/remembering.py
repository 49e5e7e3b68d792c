"""What an object of an axis may offer beside its own members: a state that checkpoints save, and numbers to log."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Remembers(Protocol):
    """Something whose answers depend on what happened before. Its state is plain values that JSON can hold."""

    def state_dict(self) -> Mapping[str, Any]:
        """All that it knows, the same on every process."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Know what `state_dict` gave, and nothing else."""


@runtime_checkable
class Measures(Protocol):
    """Something that has numbers to log after each update."""

    def metrics(self) -> Mapping[str, float]:
        """The numbers by name, the same on every process."""
