"""What scripts ask of TRL's accelerator: where this process computes, which it is, and what wraps the model here."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class AcceleratorState:
    """What scripts look up before they load models of their own."""

    deepspeed_plugin: None = None  # nothing is loaded in pieces here


@dataclass(frozen=True)
class Accelerator:
    """Device and number of this process."""

    device: torch.device
    process_index: int
    num_processes: int
    state: AcceleratorState = field(default_factory=AcceleratorState)

    @property
    def local_process_index(self) -> int:
        """The same, on one machine."""
        return self.process_index

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes."""
        return self.process_index == 0

    @property
    def is_local_main_process(self) -> bool:
        """The same, on one machine."""
        return self.process_index == 0

    def unwrap_model(self, model: object) -> object:
        """The model itself: nothing is wrapped."""
        return model

    def wait_for_everyone(self) -> None:
        """Return once every process is here."""
        if self.num_processes > 1:
            torch.distributed.barrier()

    def print(self, *words: object) -> None:
        """Print, in the first process."""
        if self.is_main_process:
            print(*words)
