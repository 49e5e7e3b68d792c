"""The pretraining loss beside PPO (PPO-ptx): which texts each optimizer step takes, and −log π of their tokens."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nearstep.algorithm.ragged import row_groups
from nearstep.common.random_streams import stream
from nearstep.data.prompts import rank_share
from nearstep.data.text_rows import TextRows
from nearstep.metrics import Mean, Metrics
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy
from nearstep.scale.backend import Backend
from nearstep.training.batches import BatchSizes
from nearstep.training.schedules import CriticSchedule, planned_steps, without_warm_up


@dataclass(frozen=True)
class Pretraining:
    """Texts and the weight of their −log π beside PPO's loss (2203.02155, eq. 2: γ).

    Rows come in passes, each in an order of its own, and run on over the end of a pass. Which rows a step takes
    depends on its number alone, so that a run that goes on takes those that it would have taken.
    """

    texts: TextRows
    coef: float
    rows: int  # of each optimizer step, over all processes
    seed: int

    def batches(self, step: int) -> Iterator[TextRows]:
        """The rows of optimizer steps of the policy, over all processes, from step number `step` on, counted from 0."""
        orders: dict[int, list[int]] = {}
        while True:
            places = range(step * self.rows, (step + 1) * self.rows)
            passes = {place // len(self.texts) for place in places}
            orders = {number: orders.get(number) or self._order(number) for number in passes}
            yield self.texts.select([orders[place // len(self.texts)][place % len(self.texts)] for place in places])
            step += 1

    def _order(self, number: int) -> list[int]:
        order: list[int] = torch.randperm(len(self.texts), generator=stream(self.seed, "ptx", number)).tolist()
        return order


def steps_before(update: int, schedule: CriticSchedule, minibatches: int) -> int:
    """Optimizer steps of the policy that a schedule plans before an update.

    Those that an early stop saves count as well, and so do those of a warm-up as if there were none: it may end early,
    and no step's texts depend on when.
    """
    return planned_steps(without_warm_up(schedule), update - 1, minibatches).policy


def pretraining_parts(texts: TextRows, batch: BatchSizes, backend: Backend) -> list[TextRows]:
    """This process's share of a step's texts, in parts for one pass each."""
    own = texts.select(rank_share(len(texts), backend.rank, backend.world_size))
    return [own.select(rows) for rows in row_groups(own.lengths.tolist(), batch.micro_tokens, batch.micro_rows)]


def pretraining_losses(
    texts: TextRows, coef: float, policy: Policy, batch: BatchSizes, backend: Backend
) -> Iterator[tuple[Tensor, Metrics]]:
    """What this process's share of a step's texts adds to the loss, one pass forward and backward each.

    The sum is divided by the tokens of all processes that are predicted. π is the model's own distribution, without
    temperature and cuts.
    """
    divisor = int(texts.predicted.sum())
    for part in pretraining_parts(texts, batch, backend):
        rollout = part.as_rollout(backend.device)
        logprobs = rollout_logprobs(policy, rollout, Sampling()).sampled
        yield -coef * logprobs.sum() / divisor, Metrics({"auxiliary/ptx": Mean.of(-logprobs)})
