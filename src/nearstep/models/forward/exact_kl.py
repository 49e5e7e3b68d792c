"""How far a policy is from its reference at every action, summed over the whole vocabulary instead of estimated."""

import torch
from jaxtyping import Float
from torch import Tensor

from nearstep.models.distribution import Sampling, sampling_logprobs
from nearstep.models.forward.action_logprobs import LOGITS_HELD
from nearstep.models.forward.forward import CausalRole, states_of
from nearstep.models.forward.layout import RowTokens
from nearstep.models.roles import Policy, Reference
from nearstep.types import Rollout


@torch.no_grad()
def rollout_exact_kl(
    policy: Policy, reference: Reference, rollout: Rollout, sampling: Sampling
) -> Float[Tensor, " actions"]:
    """KL(policy ‖ reference) of the next token before every action, Σ_v π(v)·(log π(v) − log π_ref(v)), in nats.

    At the sampling temperature, before top_k and top_p: where a policy keeps a token that its reference cuts, the KL
    of what is left is infinite. Of the logits a limited number is held at a time.
    """
    tempered = Sampling(sampling.temperature)
    own = _states(policy, rollout)
    with reference.active() as frozen:
        theirs = _states(frozen, rollout)
    size = max(16, LOGITS_HELD["cpu" if own.is_cpu else "cuda"] // policy.head.vocabulary)
    found = []
    for block, block_of_theirs in zip(own.split(size), theirs.split(size), strict=True):
        logprobs = _logprobs(policy, block, tempered)
        with reference.active() as frozen:
            gaps = logprobs - _logprobs(frozen, block_of_theirs, tempered)
        found.append(torch.linalg.vecdot(logprobs.exp(), gaps))
    return torch.cat(found)


def _states(role: CausalRole, rollout: Rollout) -> Float[Tensor, "actions width"]:
    return states_of(role, RowTokens.of(rollout), rollout.action_positions - 1)


def _logprobs(
    role: CausalRole, states: Float[Tensor, "actions width"], sampling: Sampling
) -> Float[Tensor, "actions vocabulary"]:
    with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=role.autocast):
        logits = role.head.logits(states)
    return sampling_logprobs(logits, sampling)
