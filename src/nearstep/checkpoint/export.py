"""How models are written: whole folders that plain from_pretrained opens, made beside their place and moved into it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.head_bias import store_bias
from nearstep.models.roles import Critic, Models, scalar_head, transformers_model
from nearstep.models.saving import rehearse, require_space, write_each, write_into, write_model
from nearstep.models.shared_trunk import whole_critic
from nearstep.scale.backend import Backend
from nearstep.training.state import State

Role: TypeAlias = Literal["policy", "value"]


@dataclass(frozen=True)
class Checkpoint:
    """Writes `policy/` and `value/` under a folder; optimizers and counters will lie beside them (resume)."""

    folder: Path
    models: Models
    tokenizer: PreTrainedTokenizerBase
    backend: Backend
    keep: int | None
    card: Callable[[State, Role], str]  # text of a model card
    announce: Callable[[int, Path], None]  # called with every saved folder

    def save(self, state: State) -> None:
        """Write `checkpoint-N` and let go of the oldest beyond `keep`."""
        target = self.folder / f"checkpoint-{state.update}"
        self._write(target, state)
        if self.backend.rank == 0 and self.keep is not None:
            numbered = [
                path for path in self.folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()
            ]
            saved = sorted(numbered, key=lambda path: int(path.name.removeprefix("checkpoint-")))
            for old in saved[: -self.keep]:
                shutil.rmtree(old)
        self.announce(state.update, target)

    def save_final(self, state: State) -> None:
        """Write the models of the finished run."""
        self._write(self.folder, state)
        self.announce(state.update, self.folder)

    def export_policy(self, folder: Path, state: State) -> None:
        """Write the policy alone, as a model folder of its own at `folder`."""
        policy = self.models.policy.model
        weights = self.backend.weights_to_save(policy)
        if self.backend.rank == 0:
            whole = with_adapters_merged(policy) if is_adapted(policy) else transformers_model(policy, "model")
            weights = None if is_adapted(policy) else weights
            write_into(folder, whole, weights, self.tokenizer, self.card(state, "policy"))
        self.backend.wait_for_all()

    def rehearse(self, state: State) -> None:
        """Try before the first update what could fail at the end. Raises TrainingError or ModelError."""
        if self.backend.rank != 0:
            return
        policy, critic = self.models.policy, self.models.critic
        places = [(self.folder / "policy", policy.model)]
        rehearse(self.folder / "policy", "model", policy.model, self.tokenizer, self.card(state, "policy"))
        if critic is not None:
            places.append((self.folder / "value", critic.model))
            rehearse(self.folder / "value", "value_model", critic.model, self.tokenizer, self.card(state, "value"))
        require_space(places)

    def rescue(self, state: State) -> None:
        """Write the models after a failure, without the other processes."""
        if self.backend.rank == 0:
            self._write_here(self.folder, state)

    def _write(self, target: Path, state: State) -> None:
        self._write_here(target, state)
        self.backend.wait_for_all()

    def _write_here(self, target: Path, state: State) -> None:
        policy, critic = self.models.policy.model, self.models.critic
        policy_weights = self.backend.weights_to_save(policy)
        critic_weights = None if critic is None else self.backend.weights_to_save(critic.model)
        if self.backend.rank != 0:
            return
        parts = [lambda: self._policy(target, policy_weights, state)]
        if is_adapted(policy):  # before the merged model, which needs more memory
            card = self.card(state, "policy")
            parts.insert(0, lambda: write_model(target / "policy_adapter", policy, None, self.tokenizer, card))
        if critic is not None:
            parts.append(lambda: self._critic(target, critic, critic_weights, state))
        write_each(parts)

    def _policy(self, target: Path, weights: dict[str, Tensor] | None, state: State) -> None:
        policy = self.models.policy.model
        whole = with_adapters_merged(policy) if is_adapted(policy) else transformers_model(policy, "model")
        weights = None if is_adapted(policy) else weights
        write_model(target / "policy", whole, weights, self.tokenizer, self.card(state, "policy"))

    def _critic(self, target: Path, critic: Critic, weights: dict[str, Tensor] | None, state: State) -> None:
        policy = self.models.policy.model
        merged = with_adapters_merged(policy) if self.models.one_trunk and is_adapted(policy) else None
        whole = whole_critic(critic, merged)
        weights = store_bias(whole, scalar_head(whole, "value_model"), weights if whole is critic.model else None)
        write_model(target / "value", whole, weights, self.tokenizer, self.card(state, "value"))
