"""Which roles have their weights in the host's memory while they do not compute (offload_roles)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from nearstep.config.ppo import PPOConfig
from nearstep.models.offload import HOST, Offload
from nearstep.models.roles import Models, Reference


def reward_offload(config: PPOConfig, device: torch.device) -> Callable[[nn.Module], Offload] | None:
    """What takes a reward model off the device; None where it stays."""
    return partial(Offload.of, device=device) if "reward" in config.offload_roles and device != HOST else None


def frozen_on_host(config: PPOConfig, models: Models, device: torch.device, notes: list[str]) -> Models:
    """The same roles, reference and teacher on the host where the settings say so; what moves nothing is noted."""
    if not config.offload_roles:
        return models
    if device == HOST:
        notes.append(
            "offload_roles: this process computes on the CPU, so all weights are where they would be moved to."
        )
        return models
    if "value" in config.offload_roles and models.critic is None:
        notes.append("offload_roles: there is no critic whose weights could be moved.")
    policy = models.policy.model
    if "reference" in config.offload_roles:
        models = replace(models, reference=_idle("reference", models.reference, policy, device, notes))
    if "teacher" in config.offload_roles:
        models = replace(models, teacher=_idle("teacher", models.teacher, policy, device, notes))
    return models


def _idle(
    role: str, frozen: Reference | None, policy: nn.Module, device: torch.device, notes: list[str]
) -> Reference | None:
    own = None if frozen is None or frozen.adapters_off else Offload.of(frozen.policy.model, device, beside=policy)
    if frozen is None or own is None or not own.tensors:
        notes.append(f"offload_roles: the {role} has no weights of its own that could be moved.")
        return frozen
    return replace(frozen, idle=own)
