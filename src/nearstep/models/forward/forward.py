"""The forward pass: packed rows through a trunk, then a head only where something is asked."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearstep.algorithm.precision import wide
from nearstep.models.attention.interface import AttentionPlan
from nearstep.models.distribution import Sampling
from nearstep.models.forward.action_logprobs import ActionLogprobs, action_logprobs
from nearstep.models.forward.head import Head
from nearstep.models.forward.own_pass import own_pass
from nearstep.models.forward.packing import Packed, pack, pack_rollout
from nearstep.types import Rollout


@runtime_checkable
class CausalRole(Protocol):
    """A model that gives logits: the policy and its reference."""

    @property
    def trunk(self) -> nn.Module: ...
    @property
    def head(self) -> Head: ...
    @property
    def autocast(self) -> bool: ...


@runtime_checkable
class ScalarRole(Protocol):
    """A model that gives one number per token: the critic and decoder reward models."""

    @property
    def trunk(self) -> nn.Module: ...
    @property
    def head(self) -> nn.Module: ...
    @property
    def autocast(self) -> bool: ...


def hidden_states(
    trunk: nn.Module,
    tokens: Int[Tensor, " tokens"],
    positions: Int[Tensor, "1 tokens"],
    plan: AttentionPlan,
    *,
    autocast: bool = False,
) -> Float[Tensor, "tokens width"]:
    """The last hidden state of every token of a packed input.

    Neither a mask nor a cache may be given to the model here: with either, transformers lets packed rows attend to each
    other without a word.
    """
    with own_pass(trunk), torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=autocast):
        output = trunk(
            input_ids=tokens[None],
            position_ids=positions,
            attention_mask=None,
            use_cache=False,
            attention_plan=plan,
        )
    states: Tensor = output.last_hidden_state
    return states.squeeze(0)


def states_at(
    role: CausalRole | ScalarRole,
    tokens: Int[Tensor, " tokens"],
    positions: Int[Tensor, " tokens"],
    plan: AttentionPlan,
    read: Int[Tensor, " read"],
) -> Float[Tensor, "read width"]:
    """Hidden states of some tokens of a packed input."""
    return hidden_states(role.trunk, tokens, positions[None], plan, autocast=role.autocast)[read]


def packed_states(
    role: CausalRole | ScalarRole, packed: Packed, positions: Int[Tensor, " read"]
) -> Float[Tensor, "read width"]:
    """Hidden states of some tokens of packed rows, given as places among all their tokens."""
    return states_at(role, packed.tokens, packed.positions, packed.plan, packed.places[positions])


def row_states(
    role: CausalRole | ScalarRole, tokens: Int[Tensor, " tokens"], lengths: Int[Tensor, " rows"]
) -> Float[Tensor, "tokens width"]:
    """Hidden states of rows that lie back to back, each seeing only itself."""
    packed = pack(tokens, lengths, torch.zeros_like(lengths))
    return packed_states(role, packed, torch.arange(len(tokens), device=tokens.device))


@dataclass(frozen=True)
class StateValues:
    """The critic's value of the state before every action, and of the state after every row's last token."""

    before_actions: Float[Tensor, " actions"]
    final: Float[Tensor, " rows"]


def rollout_logprobs(
    policy: CausalRole, rollout: Rollout, sampling: Sampling, *, entropy_gradient: bool = False
) -> ActionLogprobs:
    """Log-probs of every action of a rollout under a policy."""
    before = _states_at(policy, rollout, rollout.action_positions - 1)
    return _logprobs(policy, before, rollout, sampling, entropy_gradient)


def rollout_values(critic: ScalarRole, rollout: Rollout, *, head_only: bool = False) -> StateValues:
    """Values of every state of a rollout, in float32 at least; `head_only`: no gradient in the critic's trunk."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not head_only):
        states = _states_at(critic, rollout, _valued_positions(rollout))
    return _values(critic, states, rollout)


def rollout_logprobs_and_values(
    policy: CausalRole, critic: ScalarRole, rollout: Rollout, sampling: Sampling, *, entropy_gradient: bool = False
) -> tuple[ActionLogprobs, StateValues]:
    """Log-probs and values of a rollout from one pass through a trunk that policy and critic share."""
    states = _states_at(policy, rollout, _valued_positions(rollout))
    before = states[: len(rollout.logprobs)]
    return _logprobs(policy, before, rollout, sampling, entropy_gradient), _values(critic, states, rollout)


def _valued_positions(rollout: Rollout) -> Int[Tensor, " states"]:
    """Index into `tokens` of the token before every action, then of every row's last token."""
    return torch.cat([rollout.action_positions - 1, rollout.last_positions])


def _states_at(
    role: CausalRole | ScalarRole, rollout: Rollout, positions: Int[Tensor, " states"]
) -> Float[Tensor, "states width"]:
    """Hidden states at some of the tokens of a rollout."""
    return packed_states(role, pack_rollout(rollout), positions)


def _logprobs(
    policy: CausalRole,
    before_actions: Float[Tensor, "actions width"],
    rollout: Rollout,
    sampling: Sampling,
    entropy_gradient: bool,
) -> ActionLogprobs:
    top_ids = None if rollout.top is None else rollout.top.ids
    with torch.autocast(before_actions.device.type, dtype=torch.bfloat16, enabled=policy.autocast):
        return action_logprobs(
            policy.head, before_actions, rollout.actions, sampling, top_ids, entropy_gradient=entropy_gradient
        )


def _values(critic: ScalarRole, states: Float[Tensor, "states width"], rollout: Rollout) -> StateValues:
    with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=critic.autocast):
        values = wide(critic.head(states).squeeze(-1))
    before, final = values.split([len(rollout.logprobs), len(rollout)])
    return StateValues(before, final)
