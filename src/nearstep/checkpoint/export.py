"""How models are written: whole folders that plain from_pretrained opens, made beside their place and moved into it."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import TrainingError
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.head_bias import store_bias
from nearstep.models.roles import Models, inner_model, scalar_head
from nearstep.models.saving import save_weights, write_model
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
            saved = sorted(self.folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
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
            if is_adapted(policy):
                save_weights(folder, with_adapters_merged(policy), None)
            else:
                save_weights(folder, policy, weights)
            self.tokenizer.save_pretrained(folder)
            (folder / "README.md").write_text(self.card(state, "policy"), encoding="utf-8")
        self.backend.wait_for_all()

    def _write(self, target: Path, state: State) -> None:
        policy, critic = self.models.policy.model, self.models.critic
        policy_weights = self.backend.weights_to_save(policy)
        critic_weights = None if critic is None else self.backend.weights_to_save(critic.model)
        if self.backend.rank == 0:
            try:
                merged = with_adapters_merged(policy) if is_adapted(policy) else None
                if merged is not None:
                    policy.save_pretrained(target / "policy_adapter")  # type: ignore[operator]
                    self._folder(target, "policy", merged, None, state)
                else:
                    self._folder(target, "policy", inner_model(policy), policy_weights, state)
                if critic is not None and not isinstance(inner_model(critic.model), PreTrainedModel):
                    self._folder(target, "value", critic.model, critic_weights, state)
                elif critic is not None:
                    whole = whole_critic(critic, merged if self.models.one_trunk else None)
                    weights = store_bias(
                        whole, scalar_head(whole, "value_model"), critic_weights if whole is critic.model else None
                    )
                    self._folder(target, "value", whole, weights, state)
            except OSError as error:
                free = shutil.disk_usage(self.folder).free if self.folder.exists() else 0
                raise TrainingError(f"saving to {target} failed: {error} ({free:,} bytes free)") from error
        self.backend.wait_for_all()

    def _folder(
        self, folder: Path, role: Role, model: nn.Module, weights: dict[str, Tensor] | None, state: State
    ) -> None:
        """Write `folder`/`role`."""
        write_model(folder / role, model, weights, self.tokenizer, self.card(state, role))
