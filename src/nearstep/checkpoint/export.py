"""How models are written: whole folders that plain from_pretrained opens, from a copy of their weights."""

from collections.abc import Callable
from dataclasses import dataclass
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
from nearstep.models.saving import padding_token, rehearse, require_space, write_each, write_into, write_model
from nearstep.models.shared_trunk import whole_critic
from nearstep.scale.backend import Backend
from nearstep.training.state import State

Role: TypeAlias = Literal["policy", "value"]
Writing: TypeAlias = Callable[[Path], None]


@dataclass(frozen=True)
class ModelFolders:
    """Writes `policy/` and `value/` into a folder, and `policy_adapter/` where the policy has adapters."""

    models: Models
    tokenizer: PreTrainedTokenizerBase
    backend: Backend
    card: Callable[[State, Role], str]  # text of a model card

    def rehearse(self, run: Path, state: State) -> None:
        """Try before the first update what could fail at the end. Raises TrainingError or ModelError."""
        if self.backend.rank != 0:
            return
        policy, critic = self.models.policy, self.models.critic
        places = [(run / "policy", policy.model)]
        rehearse(run / "policy", "model", policy.model, self.tokenizer, self.card(state, "policy"))
        for place, member in _places(critic):
            places.append((run / place, member.model))
            rehearse(run / place, "value_model", member.model, self.tokenizer, self.card(state, "value"))
        require_space(places)

    def copied(self, state: State) -> Writing:
        """What writes the models as they are now into a folder, later and from any thread; nothing but on rank 0.

        Every process calls this: a backend that shards weights gathers them here.
        """
        policy, critic = self.models.policy.model, self.models.critic
        policy_weights = _copies(self.backend.weights_to_save(policy))
        critics = [
            (place, member, _copies(self.backend.weights_to_save(member.model))) for place, member in _places(critic)
        ]
        if self.backend.rank != 0:
            return lambda folder: None
        card = self.card(state, "policy")
        merged = with_adapters_merged(policy) if is_adapted(policy) else None
        parts: list[Writing] = []
        if merged is None:
            parts.append(self._part("policy", inner_model(policy), policy_weights, card))
        else:
            parts.append(self._part("policy_adapter", policy, policy_weights, card))
            parts.append(self._part("policy", merged, None, card))
        card = self.card(state, "value") if critics else card
        parts += [self._critic(place, member, weights, merged, card) for place, member, weights in critics]
        return lambda folder: write_each([partial(part, folder) for part in parts])

    def _critic(
        self, place: str, critic: Critic, weights: dict[str, Tensor] | None, merged: PreTrainedModel | None, card: str
    ) -> Writing:
        """Writes one critic; `merged` is the policy with its adapters merged, None where it has none."""
        if not isinstance(inner_model(critic.model), PreTrainedModel):
            return self._part(place, critic.model, weights, card)
        whole = whole_critic(critic, merged if self.models.one_trunk else None)
        whole.config.get_text_config().pad_token_id = padding_token(self.tokenizer)
        head = linear_head(whole, "value_model", critic.value_head.outputs)
        stored = store_bias(whole, head, weights if whole is critic.model else None)
        return self._part(place, whole, _copies(stored), card)

    def export_policy(self, folder: Path, state: State) -> None:
        """Write the policy alone, as a model folder of its own at `folder`."""
        policy = self.models.policy.model
        weights = self.backend.weights_to_save(policy)
        if self.backend.rank == 0:
            whole = with_adapters_merged(policy) if is_adapted(policy) else inner_model(policy)
            weights = None if is_adapted(policy) else weights
            write_into(folder, whole, weights, self.tokenizer, self.card(state, "policy"))
        self.backend.wait_for_all()

    def _part(self, place: str, model: nn.Module, weights: dict[str, Tensor] | None, card: str) -> Writing:
        return lambda folder: write_model(folder / place, model, weights, self.tokenizer, card)


def _places(critic: Critic | Critics | None) -> list[tuple[str, Critic]]:
    """Each critic with its folder: `value`, or one in it for each where there are several."""
    if isinstance(critic, Critics):
        return [(f"value/{NAME}{number}", member) for number, member in enumerate(critic.members, start=1)]
    return [] if critic is None else [("value", critic)]


def _copies(weights: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    """Copies on the CPU; weights that are one tensor under two names stay one, or both would be written."""
    if weights is None:
        return None
    copies: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Tensor] = {}
    copied = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in copies or tensor.numel() == 0:
            copies[key] = tensor.detach().to("cpu", copy=True)
        copied[name] = copies[key]
    return copied
