"""How a reward model under training scores many texts: in parts, spread over the processes, without gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.data.prompts import rank_share
from nearstep.models.reward_model import RewardReader
from nearstep.reward_modeling.examples import Comparison, Grade, PairBatch
from nearstep.scale.backend import Backend


@dataclass(frozen=True)
class PairScores:
    """Rewards of pairs, one entry per pair, and what is known of the pairs."""

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    preferences: Float[Tensor, " pairs"]
    margins: Float[Tensor, " pairs"]


@dataclass(frozen=True)
class ExampleScorer:
    """Scores examples with the current weights; every process gets all scores."""

    reader: RewardReader
    backend: Backend
    at_a_time: int

    def pairs(self, comparisons: Sequence[Comparison]) -> PairScores:
        """The rewards of all pairs in the comparisons."""
        rewards = self._rewards([list(comparison.rows) for comparison in comparisons])
        batch = PairBatch.of(comparisons)
        return PairScores(rewards[batch.better], rewards[batch.worse], batch.preferences, batch.margins)

    def grades(self, grades: Sequence[Grade]) -> Float[Tensor, " texts"]:
        """The rewards of all texts."""
        return self.rows([grade.row for grade in grades])

    def rows(self, rows: Sequence[list[int]]) -> Float[Tensor, " texts"]:
        """The rewards of rows of ids."""
        return self._rewards([[row] for row in rows])

    @torch.no_grad()
    def _rewards(self, groups: Sequence[Sequence[list[int]]]) -> Float[Tensor, " rows"]:
        """In the order of the groups, on the CPU. Groups of like length are read together: encoders pad."""
        order = sorted(range(len(groups)), key=lambda number: max(map(len, groups[number])))
        share = rank_share(len(order), self.backend.rank, self.backend.world_size)
        own = order[share.start : share.stop]
        scored: dict[int, list[float]] = {}
        for start in range(0, len(own), self.at_a_time):
            numbers = own[start : start + self.at_a_time]
            rewards = iter(self.reader.rewards([groups[number] for number in numbers]).tolist())
            scored |= {number: [next(rewards) for _ in groups[number]] for number in numbers}
        merged = {number: row for part in self.backend.gather(scored) for number, row in part.items()}
        return torch.tensor([reward for number in range(len(groups)) for reward in merged[number]], dtype=torch.float64)
