"""How models are written: whole folders that plain from_pretrained opens, from a copy of their weights."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.critic_folders import NAME
from nearstep.models.head_bias import store_bias
from nearstep.models.output_layers import linear_head
from nearstep.models.roles import Critic, Critics, Models, inner_model
from nearstep.models.saving import (
    SHARD_BYTES,
    padding_token,
    rehearse,
    require_space,
    write_each,
    write_into,
    write_model,
)
from nearstep.models.shared_trunk import whole_critic
from nearstep.scale.backend import Backend, WholeNetwork
from nearstep.training.state import State

Role: TypeAlias = Literal["policy", "value"]
Writing: TypeAlias = Callable[[Path], None]


@dataclass(frozen=True)
class ModelFolders:
    """Writes `policy/` and `value/` into a folder, `policy_adapter/` where the policy has adapters,
    `value_adapter/` where the critic has some on the same weights."""

    models: Models
    tokenizer: PreTrainedTokenizerBase
    backend: Backend
    card: Callable[[State, Role], str]  # text of a model card
    shard_bytes: int = SHARD_BYTES  # of one file

    def rehearse(self, run: Path, state: State) -> None:
        """Try before the first update what could fail at the end. Raises TrainingError or ModelError."""
        if not self.backend.is_main:
            return
        policy, critic = self.models.policy, self.models.critic
        places = [(run / "policy", policy.model)]
        rehearse(run / "policy", "model", policy.model, self.tokenizer, self.card(state, "policy"))
        for place, member in places_of(critic):
            places.append((run / place, member.model))
            rehearse(run / place, "value_model", member.model, self.tokenizer, self.card(state, "value"))
        require_space(places)

    def copied(self, state: State) -> Writing:
        """What writes the models as they are now into a folder, later and from any thread; nothing but on rank 0.

        Every process calls this: a backend that shards weights gathers them here.
        """
        policy, critic = self.backend.whole(self.models.policy.model), self.models.critic
        critics = [(place, member, self.backend.whole(member.model)) for place, member in places_of(critic)]
        if policy is None:
            return lambda folder: None
        card = self.card(state, "policy")
        parts, merged = self.policy_parts(policy, card)
        card = self.card(state, "value") if critics else card
        parts += [
            self.critic_part(place, member, value, merged, card)
            for place, member, value in critics
            if value is not None
        ]
        parts += [
            self.part("value_adapter", value.model, _kept(value), card)
            for _, member, value in critics
            if value is not None and merged is not None and self.on_policys_weights(member)
        ]
        return lambda folder: write_each([partial(part, folder) for part in parts])

    def policy_parts(self, policy: WholeNetwork, card: str) -> tuple[list[Writing], PreTrainedModel | None]:
        """What writes a policy whose weights are whole, and the policy with its adapters merged where it has some."""
        if not is_adapted(policy.model):
            return [self.part("policy", inner_model(policy.model), _kept(policy), card)], None
        merged = with_adapters_merged(policy.model)
        adapter = self.part("policy_adapter", policy.model, _kept(policy), card)
        return [adapter, self.part("policy", merged, None, card)], merged

    def critic_part(
        self,
        place: str,
        critic: Critic,
        value: WholeNetwork,
        merged: PreTrainedModel | None,
        card: str,
        *,
        in_place: bool = False,
    ) -> Writing:
        """What writes one critic, whose weights are whole in `value`; `merged` is a policy whose adapters are merged.
        `in_place`: `value` is used up."""
        critic = replace(critic, model=value.model)
        if not isinstance(inner_model(critic.model), PreTrainedModel):
            return self.part(place, critic.model, _kept(value), card)
        whole = whole_critic(critic, merged if self.models.one_trunk else None, in_place=in_place)
        whole.config.get_text_config().pad_token_id = padding_token(self.tokenizer)
        head = linear_head(whole, "value_model", critic.value_head.outputs)
        weights = store_bias(whole, head)
        return self.part(place, whole, weights if value.is_copy else _copies(weights), card)

    def on_policys_weights(self, critic: Critic) -> bool:
        """Whether a critic is adapters on the frozen weights under the policy's."""
        weights = {id(weight) for weight in self.models.policy.model.parameters()}
        return is_adapted(critic.model) and any(id(weight) in weights for weight in critic.model.parameters())

    def export_policy(self, folder: Path, state: State) -> None:
        """Write the policy alone, as a model folder of its own at `folder`."""
        policy = self.backend.whole(self.models.policy.model)
        if policy is not None:
            adapted = is_adapted(policy.model)
            whole = with_adapters_merged(policy.model) if adapted else inner_model(policy.model)
            weights = None if adapted else policy.model.state_dict()
            card = self.card(state, "policy")
            write_into(folder, whole, weights, self.tokenizer, card, shard_bytes=self.shard_bytes)
        self.backend.wait_for_all()

    def part(self, place: str, model: nn.Module, weights: dict[str, Tensor] | None, card: str) -> Writing:
        """What writes one model into a folder of its own."""
        size = self.shard_bytes
        return lambda folder: write_model(folder / place, model, weights, self.tokenizer, card, shard_bytes=size)


def places_of(critic: Critic | Critics | None) -> list[tuple[str, Critic]]:
    """Each critic with its folder: `value`, or one in it for each where there are several."""
    if isinstance(critic, Critics):
        return [(f"value/{NAME}{number}", member) for number, member in enumerate(critic.members, start=1)]
    return [] if critic is None else [("value", critic)]


def _kept(network: WholeNetwork) -> dict[str, Tensor]:
    """Its state dict as it will be when it is written, whatever training does until then."""
    weights: dict[str, Tensor] = network.model.state_dict()
    return weights if network.is_copy else _copies(weights)


def _copies(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU; weights that are one tensor under two names stay one, or both would be written."""
    copies: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Tensor] = {}
    copied = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in copies or tensor.numel() == 0:
            copies[key] = tensor.detach().to("cpu", copy=True)
        copied[name] = copies[key]
    return copied
