"""How model folders are written where no process holds a network whole: its weights are read from files, in turn."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn
from transformers import PreTrainedModel

from nearstep.checkpoint.export import ModelFolders, Role, Writing, places_of
from nearstep.models.adapters import is_adapted, with_adapters_merged
from nearstep.models.head_bias import store_bias
from nearstep.models.output_layers import linear_head
from nearstep.models.roles import Critic, inner_model
from nearstep.models.saving import padding_token, write_each
from nearstep.models.shared_trunk import whole_critic
from nearstep.models.streamed_saving import WeightReading, stream_model
from nearstep.scale.backend import WholeNetwork
from nearstep.scale.outline import Outline, live_weights
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.training.state import State

FROZEN = "frozen/"
StreamedWriting: TypeAlias = Callable[[Path, WeightReading], None]


@dataclass(frozen=True)
class StreamedFolders:
    """Writes the folders of `ModelFolders`, of networks in pieces.

    A network that has adapters is put together once, and they are merged in place: merging needs whole layers.
    """

    folders: ModelFolders
    backend: ShardedBackend

    def frozen(self, trained: Mapping[int, str]) -> dict[str, Tensor]:
        """What the folders need and training does not change, in pieces; `trained` names the weights that learn."""
        live = live_weights(self.backend, self._networks())
        found = [weight for number, weight in live.items() if number not in trained]
        return {f"{FROZEN}{number}": weight for number, weight in enumerate(found)}

    def writing(self, state: State, names: Mapping[int, str]) -> StreamedWriting:
        """What writes the folders later, given a way to read the weights under their `names`; nothing but on rank 0.

        Every process calls this. Networks that each process has whole are copied now.
        """
        if not self.backend.is_main:
            return lambda folder, stored: None
        models, critics = self.folders.models, places_of(self.folders.models.critic)
        cards: dict[Role, str] = {"policy": self.folders.card(state, "policy")}
        if critics:
            cards["value"] = self.folders.card(state, "value")
        outlines = {network: self._outline(network, names) for network in self._networks()}
        adapters = frozenset(place for place, critic in critics if self.folders.on_policys_weights(critic))
        copied = self._copied(cards)

        def write(folder: Path, stored: WeightReading) -> None:
            whole = _Whole()
            parts: list[Callable[[], None]] = [partial(part, folder) for part in copied]
            policy = outlines[models.policy.model]
            if policy is not None:
                parts.append(lambda: self._policy(folder, policy, stored, cards["policy"], whole))
            for place, critic in critics:
                outline = outlines[critic.model]
                if outline is not None and place in adapters:
                    parts.append(partial(self._adapter_critic, folder, place, critic, outline, stored, cards["value"]))
                elif outline is not None:
                    parts.append(partial(self._critic, folder, place, critic, outline, stored, cards["value"], whole))
            write_each(parts)

        return write

    def _networks(self) -> list[nn.Module]:
        models = self.folders.models
        return [models.policy.model, *(critic.model for _, critic in places_of(models.critic))]

    def _outline(self, network: nn.Module, names: Mapping[int, str]) -> Outline | None:
        if network not in self.backend.sharded:
            return None
        return Outline.of(network, self.backend.sharded[network].unsplit[network], names)

    def _copied(self, cards: Mapping[Role, str]) -> list[Writing]:
        """What writes the networks that are whole here (whole_roles), as they are now."""
        models = self.folders.models
        parts: list[Writing] = []
        if models.policy.model not in self.backend.sharded:
            whole = WholeNetwork(models.policy.model, is_copy=False)
            parts += self.folders.policy_parts(whole, cards["policy"])[0]
        for place, critic in places_of(models.critic):
            if critic.model not in self.backend.sharded:
                whole = WholeNetwork(critic.model, is_copy=False)
                parts.append(self.folders.critic_part(place, critic, whole, None, cards["value"]))
        return parts

    def _policy(self, folder: Path, outline: Outline, stored: WeightReading, card: str, whole: "_Whole") -> None:
        inner = inner_model(outline.network)
        if is_adapted(outline.network):
            network = outline.filled(stored).network
            self.folders.part("policy_adapter", network, None, card)(folder)
            whole.merged = with_adapters_merged(network, in_place=True)
            self.folders.part("policy", whole.merged, None, card)(folder)
            if not self.folders.models.one_trunk:
                whole.merged = None
        elif isinstance(inner, PreTrainedModel):
            self._stream(folder / "policy", inner, inner.state_dict(), outline, stored, card)
        else:
            self.folders.part("policy", outline.filled(stored).network, None, card)(folder)

    def _critic(
        self,
        folder: Path,
        place: str,
        critic: Critic,
        outline: Outline,
        stored: WeightReading,
        card: str,
        whole: "_Whole",
    ) -> None:
        if whole.merged is not None:  # the policy's own trunk: only the head is read
            head = replace(critic, model=outline.network).head
            found = WholeNetwork(outline.filled(stored, head.parameters()).network, is_copy=True)
            self.folders.critic_part(place, critic, found, whole.merged, card)(folder)
            return
        if is_adapted(outline.network) or not isinstance(inner_model(outline.network), PreTrainedModel):
            found = WholeNetwork(outline.filled(stored).network, is_copy=True)
            self.folders.critic_part(place, critic, found, None, card, in_place=True)(folder)
            return
        outline = outline.filled(stored, replace(critic, model=outline.network).head.parameters())
        model = whole_critic(replace(critic, model=outline.network), None)
        model.config.get_text_config().pad_token_id = padding_token(self.folders.tokenizer)
        weights = store_bias(model, linear_head(model, "value_model", critic.value_head.outputs))
        self._stream(folder / place, model, weights, outline, stored, card)

    def _adapter_critic(
        self, folder: Path, place: str, critic: Critic, outline: Outline, stored: WeightReading, card: str
    ) -> None:
        """A critic of adapters on the policy's frozen weights."""
        found = WholeNetwork(outline.filled(stored).network, is_copy=True)
        self.folders.part("value_adapter", found.model, None, card)(folder)
        self.folders.critic_part(place, critic, found, None, card, in_place=True)(folder)

    def _stream(
        self,
        target: Path,
        model: PreTrainedModel,
        weights: Mapping[str, Tensor],
        outline: Outline,
        stored: WeightReading,
        card: str,
    ) -> None:
        reader = outline.reader(model, stored)
        tokenizer, size = self.folders.tokenizer, self.folders.shard_bytes
        stream_model(target, model, weights, reader, tokenizer, card, shard_bytes=size)


@dataclass
class _Whole:
    """The policy with its adapters merged, while a critic on its trunk needs it."""

    merged: PreTrainedModel | None = None
