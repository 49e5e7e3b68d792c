"""Log-probs of models that do not learn here: the reference, the teacher, and others, without a gradient."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.algorithm.ragged import row_groups
from nearstep.common.errors import TrainingError
from nearstep.models.distribution import Sampling
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.models.roles import Policy, Reference
from nearstep.training.recipe import Recipe
from nearstep.types import Rollout


@dataclass(frozen=True)
class PassLimits:
    """How much goes into one forward pass without gradients."""

    tokens: int
    rows: int

    @staticmethod
    def of(r: Recipe) -> "PassLimits":
        """Those of a run."""
        return PassLimits(r.batch.micro_tokens, r.config.local_rollout_forward_batch_size)

    def parts(self, rollout: Rollout) -> Iterator[Rollout]:
        """A rollout in parts that fit."""
        lengths, shared = torch.stack([rollout.row_lengths, rollout.shared_prompts]).tolist()
        for rows in row_groups(lengths, self.tokens, self.rows, shared):
            yield rollout.select(torch.arange(rows.start, rows.stop, device=rollout.tokens.device))


def logprobs_under(
    policy: Policy, rollout: Rollout, sampling: Sampling, limits: PassLimits
) -> Float[Tensor, " actions"]:
    """Log-probability of every action under a policy, in forward passes of limited size."""
    return torch.cat([rollout_logprobs(policy, part, sampling).sampled for part in limits.parts(rollout)])


def reference_logprobs(rollout: Rollout, r: Recipe) -> Float[Tensor, " actions"] | None:
    """Log-probability of every action under the reference; None without one. Raises TrainingError as below."""
    return None if r.models.reference is None else _frozen_logprobs(r.models.reference, "ref_model", rollout, r)


def teacher_logprobs(rollout: Rollout, r: Recipe) -> Float[Tensor, " actions"] | None:
    """Log-probability of every action under the teacher; None without one. Raises TrainingError as below."""
    return None if r.models.teacher is None else _frozen_logprobs(r.models.teacher, "teacher_model", rollout, r)


@torch.no_grad()
def _frozen_logprobs(frozen: Reference, role: str, rollout: Rollout, r: Recipe) -> Tensor:
    """Raises TrainingError for numbers that are not finite: a frozen model is computed in its own type."""
    with r.backend.gathered(frozen.policy.model), frozen.active() as policy:
        logprobs = logprobs_under(policy, rollout, r.sampling, PassLimits.of(r))
        if not logprobs.isfinite().all():
            raise TrainingError(
                f"{role} ({policy.dtype}) gives log-probs that are not finite. Its weights are broken, or its "
                "activations too large for its type (float16 ends at 65,504): pass it in bfloat16 or float32"
            )
    return logprobs
