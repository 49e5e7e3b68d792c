"""The forward pass: rows through a trunk, then a head only where something is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearstep.algorithm.by_reward import HasColumns
from nearstep.algorithm.precision import wide
from nearstep.algorithm.several_outputs import HasMembers
from nearstep.algorithm.value_heads import ValueHead
from nearstep.models.attention.interface import AttentionPlan
from nearstep.models.distribution import Sampling
from nearstep.models.forward.action_logprobs import ActionLogprobs, action_logprobs
from nearstep.models.forward.head import Head
from nearstep.models.forward.layout import RowLayout, RowTokens
from nearstep.models.forward.shared_pass import ReadStates, StatesAsked, read_states
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


@runtime_checkable
class SeveralValueRoles(Protocol):
    """Critics whose mean is the value; a critic by itself is its only member."""

    @property
    def members(self) -> Sequence[ValueRole]: ...


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
    # What each of several says whose mean the values are; None where there is one.
    by_member: Float[Tensor, "actions members"] | None = None
    final_by_member: Float[Tensor, "rows members"] | None = None
    # What it says of each reward apart; None where it has one value for all.
    columns: Float[Tensor, "actions columns"] | None = None
    final_columns: Float[Tensor, "rows columns"] | None = None

    @staticmethod
    def joined(parts: "Sequence[StateValues]") -> "StateValues":
        """Those of rows that went through the critic apart, in this order."""
        return StateValues(
            torch.cat([part.before_actions for part in parts]),
            torch.cat([part.final for part in parts]),
            _joined([part.by_member for part in parts]),
            _joined([part.final_by_member for part in parts]),
            _joined([part.columns for part in parts]),
            _joined([part.final_columns for part in parts]),
        )

    @staticmethod
    def mean(found: "Sequence[StateValues]") -> "StateValues":
        """That of several critics of the same rows, and what each of them says; of one critic its own."""
        if len(found) == 1:
            return found[0]
        before = torch.stack([each.before_actions for each in found], dim=-1)
        final = torch.stack([each.final for each in found], dim=-1)
        return StateValues(before.mean(-1), final.mean(-1), before, final)


def _joined(parts: "Sequence[Tensor | None]") -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


@dataclass(frozen=True)
class StateOutputs:
    """What the critic's last layer gives of the same states: the numbers that a value is made of."""

    before_actions: Float[Tensor, "actions outputs"]
    final: Float[Tensor, "rows outputs"]

    def values(self, head: ValueHead) -> StateValues:
        """Their values, and those of members, or of rewards, where the head has some."""
        found = StateValues(head.values(self.before_actions), head.values(self.final))
        if isinstance(head, HasMembers):
            before, final = head.by_member(self.before_actions), head.by_member(self.final)
            found = replace(found, by_member=before, final_by_member=final)
        if isinstance(head, HasColumns):
            before, final = head.columns(self.before_actions), head.columns(self.final)
            found = replace(found, columns=before, final_columns=final)
        return found


def rollout_logprobs(
    policy: CausalRole,
    rollout: Rollout,
    sampling: Sampling,
    *,
    entropy_gradient: bool = False,
    log_normalizers: bool = False,
) -> ActionLogprobs:
    """Log-probs of every action of a rollout under a policy."""

    options = (sampling, entropy_gradient, log_normalizers)

    def one_pass() -> ActionLogprobs:
        asked = StatesAsked(rollout.action_positions - 1, _asked_ids(rollout), options)
        return _logprobs(policy, read_states(policy, policy.run, RowTokens.of(rollout), asked), *options)

    return policy.run(one_pass)


def rollout_values(critic: ValueRole | SeveralValueRoles, rollout: Rollout) -> StateValues:
    """Values of every state of a rollout, in float32 at least: the mean where there are several critics."""
    members = critic.members if isinstance(critic, SeveralValueRoles) else (critic,)
    return StateValues.mean([rollout_outputs(each, rollout).values(each.value_head) for each in members])


def rollout_outputs(critic: ValueRole, rollout: Rollout, *, head_only: bool = False) -> StateOutputs:
    """Outputs of every state of a rollout, in float32 at least; `head_only`: no gradient in the critic's trunk."""

    def one_pass() -> StateOutputs:
        asked = StatesAsked(_valued_positions(rollout), rollout.tokens.new_empty(0, 1), ("values",))
        read = read_states(critic, critic.run, RowTokens.of(rollout), asked, gradient=not head_only)
        return _outputs(critic, read, rollout)

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

    options = (sampling, entropy_gradient, log_normalizers)

    def one_pass() -> tuple[ActionLogprobs, StateOutputs]:
        asked = StatesAsked(_valued_positions(rollout), _asked_ids(rollout), (*options, "values"))
        read = read_states(policy, policy.run, RowTokens.of(rollout), asked)
        return _logprobs(policy, read, *options), _outputs(critic, read, rollout)

    return policy.run(one_pass)


def _valued_positions(rollout: Rollout) -> Int[Tensor, " states"]:
    """Index into `tokens` of the token before every action, then of every row's last token."""
    return torch.cat([rollout.action_positions - 1, rollout.last_positions])


def _asked_ids(rollout: Rollout) -> Int[Tensor, "actions k"]:
    """Of every action the token that was chosen, then the top tokens that were recorded."""
    chosen = rollout.actions[:, None]
    return chosen if rollout.top is None else torch.cat([chosen, rollout.top.ids], dim=1)


def _logprobs(
    policy: CausalRole,
    read: ReadStates,
    sampling: Sampling,
    entropy_gradient: bool,
    log_normalizers: bool,
) -> ActionLogprobs:
    with torch.autocast(read.states.device.type, dtype=torch.bfloat16, enabled=policy.autocast):
        found = action_logprobs(
            policy.head,
            read.before_actions,
            read.ids[:, 0],
            sampling,
            read.ids[:, 1:] if read.ids.shape[1] > 1 else None,
            entropy_gradient=entropy_gradient,
            log_normalizers=log_normalizers,
        )
    return read.logprobs_back(found)


def _outputs(critic: ScalarRole, read: ReadStates, rollout: Rollout) -> StateOutputs:
    with torch.autocast(read.states.device.type, dtype=torch.bfloat16, enabled=critic.autocast):
        outputs = read.states_back(wide(critic.head(read.states)))
    before, final = outputs.split([len(rollout.logprobs), len(rollout)])
    return StateOutputs(before, final)
