"""What of a run chooses its data, a sampler and a gate, and what they know that a resumed run must know again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from nearstep.common.remembering import Measures, Remembers
from nearstep.common.telling import tell
from nearstep.config.selection import GateFill
from nearstep.data.samplers import Passes, Sampler, SeesScores
from nearstep.metrics import Mean, Metrics
from nearstep.training.gates import Gate
from nearstep.training.state import State


@dataclass(frozen=True)
class Selection:
    """Which prompts are drawn, which finished groups train, and what takes the place of those that do not."""

    sampler: Sampler = field(default_factory=Passes)
    gate: Gate | None = None
    fill: GateFill = "none"
    refill_rounds: int = 0
    data: str = ""  # hash of the prompts, whose numbers a sampler remembers

    @property
    def looks_at_scores(self) -> bool:
        """Whether anything here asks how responses scored."""
        return self.gate is not None or isinstance(self.sampler, SeesScores)

    def restore(self, state: State) -> None:
        """Before the first update: know what the state of the run says, or let a new run begin with what is known.

        What another sampler or gate knew, or one of other data, is left: a fork may have them.
        """
        if state.selection is None:
            state.selection = self.state_dict()
            return
        for part, remembers in self._remembering().items():
            saved = state.selection.get(part)
            if saved is not None and saved["name"] == type(remembers).__name__ and saved["data"] == self.data:
                remembers.load_state_dict(saved["state"])
            else:
                tell(
                    f"{part} {type(remembers).__name__} begins anew: the checkpoint is of another one, or of other data"
                )

    def state_dict(self) -> dict[str, Any] | None:
        """What sampler and gate know, as plain values; None where neither remembers anything."""
        found = {
            part: {"name": type(remembers).__name__, "data": self.data, "state": dict(remembers.state_dict())}
            for part, remembers in self._remembering().items()
        }
        return found or None

    def metrics(self) -> Metrics:
        """The numbers of sampler and gate, alike on every process."""
        return Metrics({
            f"{part}/{name}": Mean.of(torch.tensor([float(number)], dtype=torch.float64))
            for part, measured in self._parts().items()
            if isinstance(measured, Measures)
            for name, number in measured.metrics().items()
        })  # fmt: skip

    def _parts(self) -> Mapping[str, object]:
        return {"sampler": self.sampler, "gate": self.gate}

    def _remembering(self) -> dict[str, Remembers]:
        return {part: found for part, found in self._parts().items() if isinstance(found, Remembers)}
