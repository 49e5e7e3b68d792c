"""A reward model whose weights are in the host's memory while nothing is scored."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from nearstep.models.offload import Offload
from nearstep.rewards.model import Scorer


@dataclass(frozen=True)
class IdleScorer:
    """A scorer, and what brings its weights to the device while it scores."""

    scorer: Scorer
    offload: Offload

    def score(self, rows: list[list[int]]) -> Float[Tensor, " rows"]:
        """See Scorer.score."""
        with self.offload.here():
            return self.scorer.score(rows)
