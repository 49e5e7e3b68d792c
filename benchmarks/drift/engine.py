"""A rollout engine that is not quite the trainer: its weights are rounded to few bits, or some updates old."""

from collections import deque
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nearstep.models.roles import Policy, frozen_copy
from nearstep.rollout.engine import Capabilities, GenerationSettings, RolloutEngine, RowEnded
from nearstep.types import Prompts, Rollout


@dataclass
class DriftingEngine:
    """Plays with `inner`, on a copy of the policy as it was `stale_by` loads ago, its matrices rounded to `precision`.

    The first loads, before there is anything older, get the oldest weights there are.
    """

    inner: RolloutEngine
    precision: torch.dtype | None = None
    stale_by: int = 0
    copy: Policy | None = None
    past: deque[dict[str, Tensor]] = field(default_factory=deque)

    def load(self, policy: Policy, version: int) -> None:
        """Take a snapshot of the policy; give the inner engine the one that is due."""
        if self.copy is None:
            self.copy = frozen_copy(policy).policy
        self.past.append({name: weights.detach().clone() for name, weights in policy.model.state_dict().items()})
        while len(self.past) > self.stale_by + 1:
            self.past.popleft()
        due = self.past[0] if self.precision is None else rounded(self.past[0], self.precision)
        self.copy.model.load_state_dict(due)
        self.inner.load(self.copy, version - len(self.past) + 1)

    def capabilities(self) -> Capabilities:
        """Those of the inner engine, but for telling of rows."""
        return replace(self.inner.capabilities(), row_ended=False)

    def generate(self, prompts: Prompts, settings: GenerationSettings, row_ended: RowEnded | None = None) -> Rollout:
        """See RolloutEngine.generate."""
        return self.inner.generate(prompts, settings)

    def close(self) -> None:
        """Close the inner engine."""
        self.inner.close()


def rounded(weights: dict[str, Tensor], precision: torch.dtype) -> dict[str, Tensor]:
    """Every matrix with its rows scaled to the range of `precision`, rounded to it, and scaled back."""
    return {name: _rounded(matrix, precision) if matrix.dim() == 2 else matrix for name, matrix in weights.items()}


def _rounded(matrix: Tensor, precision: torch.dtype) -> Tensor:
    least = torch.finfo(matrix.dtype).tiny * 1e6  # a row of zeros, as of adapters at their start, stays one
    largest = matrix.abs().amax(dim=1, keepdim=True).clamp(min=least)
    scale = torch.finfo(precision).max / largest if torch.finfo(precision).bits == 8 else torch.ones_like(largest)
    return (matrix * scale).to(precision).to(matrix.dtype) / scale
