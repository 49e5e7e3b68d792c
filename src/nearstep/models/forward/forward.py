"""The forward pass: rows through a trunk, then a head only where something is asked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearstep.algorithm.precision import wide
from nearstep.algorithm.value_heads import ValueHead
from nearstep.models.attention.interface import AttentionPlan
from nearstep.models.distribution import Sampling
from nearstep.models.forward.action_logprobs import ActionLogprobs, action_logprobs
from nearstep.models.forward.head import Head
from nearstep.models.forward.layout import RowLayout, RowTokens
from nearstep.models.forward.trunk import hidden_states
from nearstep.types import Rollout

Found = TypeVar("Found")


@runtime_checkable
class PassRunner(Protocol):
    """Runs a pass whose gradient is wanted: as it is, or with weights gathered around it that lie over processes."""

    def __call__(self, one_pass: Callable[[], Found]) -> Found: ...


def as_it_is(one_pass: Callable[[], Found]) -> Found:
    """Run a pass of a model whose weights are here."""
    return one_pass()


@runtime_checkable
class CausalRole(Protocol):
    """A model that gives logits: the policy and its reference."""

    @property
    def trunk(self) -> nn.Module: ...
    @property
    def head(self) -> Head: ...
    @property
    def layout(self) -> RowLayout: ...
    @property
    def autocast(self) -> bool: ...
    @property
    def run(self) -> PassRunner: ...


@runtime_checkable
class ScalarRole(Protocol):
    """A model that gives numbers per token: the critic and decoder reward models, which give one."""

    @property
    def trunk(self) -> nn.Module: ...
    @property
    def head(self) -> nn.Module: ...
    @property
    def layout(self) -> RowLayout: ...
    @property
    def autocast(self) -> bool: ...


@runtime_checkable
class ValueRole(ScalarRole, Protocol):
    """A critic: what its numbers mean is said by its head."""

    @property
    def value_head(self) -> ValueHead: ...
    @property
    def run(self) -> PassRunner: ...


def states_at(
    role: CausalRole | ScalarRole,
    tokens: Int[Tensor, " tokens"],
    positions: Int[Tensor, " tokens"],
    plan: AttentionPlan,
    read: Int[Tensor, " read"],
) -> Float[Tensor, "read width"]:
    """Hidden states of some tokens of a packed input."""
    return hidden_states(role.trunk, tokens, positions[None], plan, autocast=role.autocast)[read]


def states_of(
    role: CausalRole | ScalarRole, rows: RowTokens, read: Int[Tensor, " read"]
) -> Float[Tensor, "read width"]:
    """Hidden states of some tokens of rows, given as places among all their tokens."""
    return role.layout.states(role.trunk, rows, read, autocast=role.autocast)


def row_states(
    role: CausalRole | ScalarRole, tokens: Int[Tensor, " tokens"], lengths: Int[Tensor, " rows"]
) -> Float[Tensor, "tokens width"]:
    """Hidden states of rows that lie back to back, each seeing only itself."""
    every = torch.arange(len(tokens), device=tokens.device)
    return states_of(role, RowTokens(tokens, lengths, torch.zeros_like(lengths)), every)


@dataclass(frozen=True)
class StateValues:
    """The critic's value of the state before every action, and of the state after every row's last token."""

    before_actions: Float[Tensor, " actions"]
    final: Float[Tensor, " rows"]


@dataclass(frozen=True)
class StateOutputs:
    """What the critic's last layer gives of the same states: the numbers that a value is made of."""

    before_actions: Float[Tensor, "actions outputs"]
    final: Float[Tensor, "rows outputs"]

    def values(self, head: ValueHead) -> StateValues:
        """Their values."""
        return StateValues(head.values(self.before_actions), head.values(self.final))


def rollout_logprobs(
    policy: CausalRole,
    rollout: Rollout,
    sampling: Sampling,
    *,
    entropy_gradient: bool = False,
    log_normalizers: bool = False,
) -> ActionLogprobs:
    """Log-probs of every action of a rollout under a policy."""

    def one_pass() -> ActionLogprobs:
        before = states_of(policy, RowTokens.of(rollout), rollout.action_positions - 1)
        return _logprobs(policy, before, rollout, sampling, entropy_gradient, log_normalizers)

    return policy.run(one_pass)


def rollout_values(critic: ValueRole, rollout: Rollout) -> StateValues:
    """Values of every state of a rollout, in float32 at least."""
    return rollout_outputs(critic, rollout).values(critic.value_head)


def rollout_outputs(critic: ValueRole, rollout: Rollout, *, head_only: bool = False) -> StateOutputs:
    """Outputs of every state of a rollout, in float32 at least; `head_only`: no gradient in the critic's trunk."""

    def one_pass() -> StateOutputs:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not head_only):
            states = states_of(critic, RowTokens.of(rollout), _valued_positions(rollout))
        return _outputs(critic, states, rollout)

    return critic.run(one_pass)


def rollout_logprobs_and_outputs(
    policy: CausalRole,
    critic: ScalarRole,
    rollout: Rollout,
    sampling: Sampling,
    *,
    entropy_gradient: bool = False,
    log_normalizers: bool = False,
) -> tuple[ActionLogprobs, StateOutputs]:
    """Log-probs and outputs of a rollout from one pass through a trunk that policy and critic share."""

    def one_pass() -> tuple[ActionLogprobs, StateOutputs]:
        states = states_of(policy, RowTokens.of(rollout), _valued_positions(rollout))
        before = states[: len(rollout.logprobs)]
        logprobs = _logprobs(policy, before, rollout, sampling, entropy_gradient, log_normalizers)
        return logprobs, _outputs(critic, states, rollout)

    return policy.run(one_pass)


def _valued_positions(rollout: Rollout) -> Int[Tensor, " states"]:
    """Index into `tokens` of the token before every action, then of every row's last token."""
    return torch.cat([rollout.action_positions - 1, rollout.last_positions])


def _logprobs(
    policy: CausalRole,
    before_actions: Float[Tensor, "actions width"],
    rollout: Rollout,
    sampling: Sampling,
    entropy_gradient: bool,
    log_normalizers: bool,
) -> ActionLogprobs:
    top_ids = None if rollout.top is None else rollout.top.ids
    with torch.autocast(before_actions.device.type, dtype=torch.bfloat16, enabled=policy.autocast):
        return action_logprobs(
            policy.head,
            before_actions,
            rollout.actions,
            sampling,
            top_ids,
            entropy_gradient=entropy_gradient,
            log_normalizers=log_normalizers,
        )


def _outputs(critic: ScalarRole, states: Float[Tensor, "states width"], rollout: Rollout) -> StateOutputs:
    with torch.autocast(states.device.type, dtype=torch.bfloat16, enabled=critic.autocast):
        outputs = wide(critic.head(states))
    before, final = outputs.split([len(rollout.logprobs), len(rollout)])
    return StateOutputs(before, final)
