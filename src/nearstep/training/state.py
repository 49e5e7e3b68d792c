"""How far a run has come."""

from collections.abc import Sequence
from dataclasses import dataclass

from nearstep.training.batches import BatchSizes
from nearstep.training.schedules import Phase


@dataclass
class State:
    """The position of a run. Every random stream derives from it and the seed, so it is all that a resumed run needs
    beside weights and optimizers."""

    update: int = 0  # number of the update that runs or ran last, from 1
    episodes: int = 0  # played over all processes
    epoch: float = 0.0  # passes over the prompts
    policy_steps: int = 0  # optimizer steps
    critic_steps: int = 0

    def begin_update(self) -> None:
        """The next update begins."""
        self.update += 1

    def end_update(self, batch: BatchSizes, phases: Sequence[Phase]) -> None:
        """The update is done, after these phases."""
        self.policy_steps += batch.minibatches * sum(phase.epochs for phase in phases if phase.policy)
        self.critic_steps += batch.minibatches * sum(phase.epochs for phase in phases if phase.critic)
        self.episodes += batch.batch
        self.epoch = self.update * batch.prompts / batch.dataset_rows
