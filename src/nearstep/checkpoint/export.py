"""How models are written: whole folders that plain from_pretrained opens, from a copy of their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.head_bias import store_bias
from nearstep.models.output_layers import linear_head
from nearstep.models.roles import Models, inner_model
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
        if critic is not None:
            places.append((run / "value", critic.model))
            rehearse(run / "value", "value_model", critic.model, self.tokenizer, self.card(state, "value"))
        require_space(places)

    def copied(self, state: State) -> Writing:
        """What writes the models as they are now into a folder, later and from any thread; nothing but on rank 0.

        Every process calls this: a backend that shards weights gathers them here.
        """
        policy, critic = self.models.policy.model, self.models.critic
        policy_weights = _copies(self.backend.weights_to_save(policy))
        critic_weights = None if critic is None else _copies(self.backend.weights_to_save(critic.model))
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
        if critic is not None and not isinstance(inner_model(critic.model), PreTrainedModel):
            parts.append(self._part("value", critic.model, critic_weights, self.card(state, "value")))
        elif critic is not None:
            whole = whole_critic(critic, merged if self.models.one_trunk else None)
            whole.config.get_text_config().pad_token_id = padding_token(self.tokenizer)
            head = linear_head(whole, "value_model", critic.value_head.outputs)
            weights = store_bias(whole, head, critic_weights if whole is critic.model else None)
            parts.append(self._part("value", whole, _copies(weights), self.card(state, "value")))
        return lambda folder: write_each([partial(part, folder) for part in parts])

    def export_policy(self, folder: Path, state: State) -> None:
        """Write the policy alone, as a model folder of its own at `folder`."""
        policy = self.models.policy.model
        weights = self.backend.weights_to_save(policy)
        if self.backend.rank == 0:
            whole = with_adapters_merged(policy) if is_adapted(policy) else inner_model(policy)
            weights = None if is_adapted(policy) else weights
            write_into(folder, whole, weights, self.tokenizer, self.card(state, "policy"))
        self.backend.wait_for_all()

    def _part(self, role: str, model: nn.Module, weights: dict[str, Tensor] | None, card: str) -> Writing:
        return lambda folder: write_model(folder / role, model, weights, self.tokenizer, card)


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
