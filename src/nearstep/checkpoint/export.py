"""How models are written: whole folders that plain from_pretrained opens, made beside their place and moved into it."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import TrainingError
from nearstep.common.whole_folder import whole_folder
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.head_bias import store_bias
from nearstep.models.roles import Models, scalar_head, transformers_model
from nearstep.models.saving import padding_token, write_model
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
    saved: list[Path] = field(default_factory=list)  # by this run and still there, oldest first

    def save(self, state: State) -> None:
        """Write `checkpoint-N`, whole or not at all, and let go of this run's oldest beyond `keep`."""
        target = self.folder / f"checkpoint-{state.update}"
        with whole_folder(target) if self.backend.rank == 0 else nullcontext(target) as unfinished:
            self._write(unfinished, state)
        self.backend.wait_for_all()
        self.saved[:] = [*(folder for folder in self.saved if folder != target), target]
        while self.keep is not None and len(self.saved) > self.keep:
            oldest = self.saved.pop(0)
            if self.backend.rank == 0:
                shutil.rmtree(oldest, ignore_errors=True)  # it may have been moved away
        self.announce(state.update, target)

    def save_final(self, state: State) -> None:
        """Write the models of the finished run."""
        self._write(self.folder, state)
        self.backend.wait_for_all()
        self.announce(state.update, self.folder)

    def export_policy(self, folder: Path, state: State) -> None:
        """Write the policy alone, as a model folder of its own at `folder`."""
        policy = self.models.policy.model
        weights = self.backend.weights_to_save(policy)
        if self.backend.rank == 0:
            whole = with_adapters_merged(policy) if is_adapted(policy) else transformers_model(policy, "model")
            whole.save_pretrained(folder, state_dict=None if is_adapted(policy) else weights)
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
                    self._folder(target, "policy", transformers_model(policy, "model"), policy_weights, state)
                if critic is not None:
                    whole = whole_critic(critic, merged if self.models.one_trunk else None)
                    whole.config.get_text_config().pad_token_id = padding_token(self.tokenizer)
                    weights = store_bias(
                        whole, scalar_head(whole, "value_model"), critic_weights if whole is critic.model else None
                    )
                    self._folder(target, "value", whole, weights, state)
            except OSError as error:
                free = shutil.disk_usage(self.folder).free if self.folder.exists() else 0
                raise TrainingError(f"saving to {target} failed: {error} ({free:,} bytes free)") from error

    def _folder(
        self, folder: Path, role: Role, model: PreTrainedModel, weights: dict[str, Tensor] | None, state: State
    ) -> None:
        """Write `folder`/`role`."""
        write_model(folder / role, model, weights, self.tokenizer, self.card(state, role))
