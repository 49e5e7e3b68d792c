"""How far a run has come."""

from dataclasses import dataclass

from nearstep.training.batches import BatchSizes


@dataclass
class State:
    """The position of a run. Every random stream derives from it and the seed, so it is all that a resumed run needs
    beside weights and optimizers."""

    update: int = 0  # number of the update that runs or ran last, from 1
    episodes: int = 0  # played over all processes
    epoch: float = 0.0  # passes over the prompts

    def begin_update(self) -> None:
        """The next update begins."""
        self.update += 1

    def end_update(self, batch: BatchSizes) -> None:
        """The update is done."""
        self.episodes += batch.batch
        self.epoch = self.update * batch.prompts / batch.dataset_rows
