"""One forward pass over the rows of several processes, each with a share of their tokens (sequence parallelism).

Everything in a decoder but attention works token by token, so that each process computes its share of the tokens by
itself. Around attention what one has of all heads becomes what all have of some heads, and back (DeepSpeed-Ulysses,
2309.14509): one message for queries, keys and values, one for what comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nearstep.common.errors import ModelError
from nearstep.models.attention.interface import AttentionPlan, LayerInput
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.layout import RowLayout, RowTokens
from nearstep.models.forward.packing import pack
from nearstep.models.forward.trunk import hidden_states

Item = TypeVar("Item")


@runtime_checkable
class Partners(Protocol):
    """Processes that make passes together; all of them call each of these, in the same order."""

    @property
    def place(self) -> int:
        """Number of this process among them, from 0."""

    @property
    def size(self) -> int:
        """How many they are."""

    def gather(self, item: Item) -> list[Item]:
        """What each of them passed, in order."""

    def exchange(
        self, values: Float[Tensor, "sent *rest"], sent: Sequence[int], received: Sequence[int]
    ) -> Float[Tensor, "received *rest"]:
        """The first `sent[0]` values to the first of them, and so on; what each has sent here, in order. Gradients go
        the way back."""


@runtime_checkable
class RunsTogether(Protocol):
    """A PassRunner whose passes with a gradient are made by several processes."""

    @property
    def partners(self) -> Partners:
        """These processes."""


@dataclass(frozen=True)
class StatesAsked:
    """What is read of a pass over rows: states after some tokens, and of the first of these the log-probs of ids.

    `options` are what else the answer depends on: the same on all partners, for each answers the questions of others.
    """

    places: Int[Tensor, " states"]  # among all tokens of the rows
    ids: Int[Tensor, "actions k"]
    options: tuple[object, ...] = ()


@dataclass(frozen=True)
class SharedAttention:
    """A plan for all tokens, of which this process has a share: it attends with some heads for all of them."""

    plan: AttentionPlan
    partners: Partners
    shares: tuple[int, ...]  # tokens of each partner

    def attend(self, layer: LayerInput) -> Float[Tensor, "1 heads tokens value_width"]:
        """See AttentionPlan.attend."""
        many, (heads, kv_heads) = self.partners.size, (layer.query.shape[1], layer.key.shape[1])
        if heads % many:
            raise ModelError(
                f"{heads} attention heads cannot be dealt to {many} processes: give an sp_size that divides"
            )
        # Fewer key heads than processes: each is sent to all whose queries read it.
        repeats = lcm(kv_heads, many) // kv_heads
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (layer.key, layer.value))
        parts = [_for_each(states, many) for states in (layer.query, key, value)]
        own, every = self.shares[self.partners.place], sum(self.shares)
        found = self.partners.exchange(torch.cat(parts, dim=1), [own] * many, self.shares)
        mine = found.split([part.shape[1] for part in parts], dim=1)
        widths = [states.shape[-1] for states in (layer.query, key, value)]
        query, key, value = (
            states.view(1, every, -1, width).transpose(1, 2) for states, width in zip(mine, widths, strict=True)
        )
        attended = self.plan.attend(replace(layer, query=query, key=key, value=value))
        sent = attended.squeeze(0).transpose(0, 1).flatten(1)
        back = self.partners.exchange(sent, self.shares, [own] * many)
        by_partner = back.view(many, own, heads // many, value.shape[-1])
        return by_partner.permute(0, 2, 1, 3).reshape(1, heads, own, -1)


def _for_each(states: Float[Tensor, "1 heads tokens width"], many: int) -> Float[Tensor, "sent rest"]:
    """Own tokens with the heads of the first partner, then with those of the second, and so on."""
    _, heads, tokens, width = states.shape
    return states.reshape(many, heads // many, tokens, width).transpose(1, 2).reshape(many * tokens, -1)


@runtime_checkable
class ReadStates(Protocol):
    """States that questions are asked about, whoever asks, and the ways by which answers go back."""

    @property
    def states(self) -> Float[Tensor, "questions width"]: ...
    @property
    def before_actions(self) -> Float[Tensor, "actions width"]:
        """Those of which log-probs are asked."""

    @property
    def ids(self) -> Int[Tensor, "actions k"]:
        """Of which ids."""

    def states_back(self, answers: Float[Tensor, "questions *rest"]) -> Float[Tensor, "own *rest"]:
        """Answers about all states to those who asked; those to this process's own questions."""

    def logprobs_back(self, found: ActionLogprobs) -> ActionLogprobs:
        """The same of log-probs."""


@dataclass(frozen=True)
class WholeStates:
    """Those of a process that makes its passes by itself."""

    states: Float[Tensor, "states width"]
    ids: Int[Tensor, "actions k"]

    @property
    def before_actions(self) -> Float[Tensor, "actions width"]:
        """See ReadStates.before_actions."""
        return self.states[: len(self.ids)]

    def states_back(self, answers: Float[Tensor, "states *rest"]) -> Float[Tensor, "states *rest"]:
        """They stay here."""
        return answers

    def logprobs_back(self, found: ActionLogprobs) -> ActionLogprobs:
        """They stay here."""
        return found


@dataclass(frozen=True)
class SharedStates:
    """States of tokens in this process's share that any partner asks for, partner by partner, and the ways back."""

    states: Float[Tensor, "mine width"]
    is_action: Tensor  # [mine], whether log-probs are asked of it
    ids: Int[Tensor, "actions k"]
    partners: Partners
    who: Tensor  # [mine], which partner asks
    answered_by: Int[Tensor, " states"]  # of each own question
    actions: int  # own questions of log-probs, which come first
    top_ids: int  # how many ids each of these asks for beside the first

    @property
    def before_actions(self) -> Float[Tensor, "actions width"]:
        """See ReadStates.before_actions."""
        return self.states[self.is_action]

    def states_back(self, answers: Float[Tensor, "mine *rest"]) -> Float[Tensor, "states *rest"]:
        """See ReadStates.states_back."""
        return self._back(answers, self.who, self.answered_by)

    def logprobs_back(self, found: ActionLogprobs) -> ActionLogprobs:
        """See ReadStates.logprobs_back. All that is known of an action goes in one message: whichever parts of it a
        loss is made of, each partner's backward pass sends one."""
        parts = (found.sampled, found.entropy, found.top, found.log_normalizers)
        columns = [part if part.dim() == 2 else part[:, None] for part in parts if part is not None]
        answers = self._back(torch.cat(columns, dim=1), self.who[self.is_action], self.answered_by[: self.actions])
        return ActionLogprobs(
            sampled=answers[:, 0],
            entropy=answers[:, 1],
            top=answers[:, 2 : 2 + self.top_ids] if self.top_ids else None,
            log_normalizers=None if found.log_normalizers is None else answers[:, -1],
        )

    def _back(self, answers: Tensor, who: Tensor, answered_by: Tensor) -> Tensor:
        many = self.partners.size
        sent, received = (torch.bincount(of, minlength=many).tolist() for of in (who, answered_by))
        found = self.partners.exchange(answers, sent, received)
        return found[answered_by.argsort(stable=True).argsort()]


@runtime_checkable
class HasTrunk(Protocol):
    """A role, as far as its trunk goes."""

    @property
    def trunk(self) -> nn.Module: ...
    @property
    def layout(self) -> RowLayout: ...
    @property
    def autocast(self) -> bool: ...


def read_states(
    role: HasTrunk, run: object, rows: RowTokens, asked: StatesAsked, *, gradient: bool = True
) -> ReadStates:
    """States that are asked for, from a pass that `run` runs: of own rows alone, or of those of all partners.

    `gradient`: whether the trunk has one. A pass without any is a process's own: what partners divide is what the
    backward pass needs of every layer.
    """
    if isinstance(run, RunsTogether) and torch.is_grad_enabled():
        return shared_states(role.trunk, rows, asked, run.partners, autocast=role.autocast, gradient=gradient)
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient):
        states = role.layout.states(role.trunk, rows, asked.places, autocast=role.autocast)
    return WholeStates(states, asked.ids)


def shared_states(
    trunk: nn.Module, rows: RowTokens, asked: StatesAsked, partners: Partners, *, autocast: bool, gradient: bool
) -> SharedStates:
    """Run the rows of all partners through a trunk together, each its share of the tokens.

    `gradient`: whether the trunk has one. Raises RuntimeError where partners are not at the same pass.
    """
    device = rows.tokens.device
    own = (rows.tokens, rows.lengths, rows.leads, asked.places, asked.ids)
    everyone = partners.gather((tuple(each.cpu() for each in own), asked.options))
    if any(options != asked.options for _, options in everyone):
        raise RuntimeError(f"processes of one pass ask different things: {[options for _, options in everyone]}")
    tokens, lengths, leads, places, ids = zip(*(items for items, _ in everyone), strict=True)
    packed = pack(*(torch.cat(parts).to(device) for parts in (tokens, lengths, leads)))
    shares = [len(part) for part in torch.arange(len(packed.tokens)).tensor_split(partners.size)]
    begin = sum(shares[: partners.place])
    mine = slice(begin, begin + shares[partners.place])
    plan = SharedAttention(packed.plan, partners, tuple(shares))
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient):
        states = hidden_states(
            trunk, packed.tokens[mine], packed.positions[mine][None], plan, autocast=autocast
        )  # fmt: skip
    ends = torch.tensor(shares, device=device).cumsum(0)
    first, questions = 0, []
    for number, (of_tokens, of_places, of_ids) in enumerate(zip(tokens, places, ids, strict=True)):
        where = packed.places[first + of_places.to(device)]
        answered_by = torch.searchsorted(ends, where, right=True)
        if number == partners.place:
            answered_here = answered_by
        chosen = (answered_by == partners.place).nonzero().squeeze(-1)
        questions.append((where[chosen] - begin, chosen < len(of_ids), chosen, torch.full_like(chosen, number)))
        first += len(of_tokens)
    where, is_action, _, who = (torch.cat(parts) for parts in zip(*questions, strict=True))
    return SharedStates(
        states=states[where],
        is_action=is_action,
        ids=_ids_of(ids, [chosen for *_, chosen, _ in questions]),
        partners=partners,
        who=who,
        answered_by=answered_here,
        actions=len(asked.ids),
        top_ids=max(asked.ids.shape[1] - 1, 0),
    )


def _ids_of(ids: Sequence[Tensor], chosen: Sequence[Tensor]) -> Int[Tensor, "actions k"]:
    """Ids of the chosen questions that ask for some; partners that ask for fewer get the first id's answer again."""
    most = max(each.shape[1] for each in ids)
    found = []
    for each, numbers in zip(ids, chosen, strict=True):
        wide = torch.cat([each, each[:, :1].expand(-1, most - each.shape[1])], dim=1)
        found.append(wide.to(numbers.device)[numbers[numbers < len(each)]])
    return torch.cat(found)
