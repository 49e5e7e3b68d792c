"""Whether the rows of a run's networks can lie over several processes (sp_size), shown before the first update."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from nearstep.common.errors import ConfigError, ModelError
from nearstep.models.forward.layout import RowTokens
from nearstep.models.forward.probing import LENGTHS, probe_rows, relative_gap, rounding
from nearstep.models.forward.shared_pass import RunsTogether, StatesAsked, read_states
from nearstep.models.roles import Critic, Models, Policy
from nearstep.scale.backend import Backend

BY_LENGTH = {"dynamic", "longrope"}  # rotary positions that are others once a row is longer than a limit
INSTEAD = "Leave sp_size out: dp_shard, gradient_checkpointing and a smaller max_tokens_per_microbatch save memory too"


def require_rows_over_processes(models: Models, backend: Backend) -> None:
    """Raise ConfigError or ModelError for a network that trains and does not give, over several processes, what it
    gives on one. All processes call this, before any optimizer is made; it leaves no gradient."""
    if not isinstance(models.policy.run, RunsTogether):
        return
    size = models.policy.run.partners.size
    for role, network in _trained(models):
        name = f"{role}: {type(network.trunk).__name__}"
        if not network.layout.token_by_token:
            raise ConfigError(
                f"sp_size = {size}: {name} {network.layout.note} So something but attention mixes its tokens, and they "
                f"cannot be dealt to processes. {INSTEAD}"
            )
        if _by_length(network.trunk):
            raise ConfigError(
                f"sp_size = {size}: {name} has rotary positions that depend on how long a row is "
                f"({', '.join(sorted(BY_LENGTH))}), and a process sees a share of it. {INSTEAD}"
            )
        heads = _config(network).to_dict().get("num_attention_heads", size)
        if heads % size:
            raise ConfigError(
                f"sp_size = {size}: {name} has {heads} attention heads, which cannot be dealt to {size} processes: "
                f"give a number that divides {heads}. {INSTEAD}"
            )
        with torch.no_grad(), backend.gathered(network.model):
            alone = _states(network)
        together = network.run(partial(_states, network))
        if together.requires_grad:
            backend.backward(together.sum() * 0)
        for weight in network.model.parameters():
            weight.grad = None
        worst = max(backend.gather(relative_gap(together.detach(), alone)))
        if not worst <= rounding(together.dtype if not network.autocast else torch.bfloat16):
            raise ModelError(
                f"sp_size = {size}: {name} gives other numbers when the tokens of a row lie over processes (relative "
                f"gap {worst:.2g}). {INSTEAD}. Please report the family."
            )


def _trained(models: Models) -> Iterator[tuple[str, Policy | Critic]]:
    yield "policy", models.policy
    for member in () if models.critic is None else models.critic.members:
        yield "value", member


def _states(network: Policy | Critic) -> Tensor:
    """Last states of a few short rows."""
    device = next(network.trunk.parameters()).device
    rows = probe_rows(_config(network).vocab_size, device)
    lengths = torch.tensor(LENGTHS, device=device)
    asked = StatesAsked(torch.arange(sum(LENGTHS), device=device), lengths.new_empty(0, 1))
    read = read_states(network, network.run, RowTokens(torch.cat(rows), lengths, torch.zeros_like(lengths)), asked)
    return read.states_back(read.states)


def _config(network: Policy | Critic) -> PreTrainedConfig:
    config: PreTrainedConfig = network.trunk.config
    return config.get_text_config()


def _by_length(trunk: nn.Module) -> bool:
    kinds = [vars(module).get("rope_type") for module in trunk.modules()]
    named = {kind for each in kinds if each for kind in (each.values() if isinstance(each, dict) else [each])}
    return bool(named & BY_LENGTH)
