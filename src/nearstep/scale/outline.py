"""A network that lies in pieces, without its weights: what a folder of it is made from, as they are read back."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from nearstep.models.streamed_saving import WeightReading
from nearstep.scale.backend import Backend
from nearstep.scale.sequence_groups import SequenceBackend
from nearstep.scale.sharded_backend import ShardedBackend


@dataclass(frozen=True)
class Outline:
    """A copy of a network on the meta device, and under which name each of its weights is stored."""

    network: nn.Module
    names: Mapping[int, str]  # id of a weight → its name

    @staticmethod
    def of(network: nn.Module, unsplit: nn.Module, keys: Mapping[int, str]) -> "Outline":
        """`unsplit` is the network as it was before it was dealt out; `keys` are by the ids of the live weights."""
        live = {name: keys[id(weight)] for name, weight in network.named_parameters()}
        own: dict[int, object] = {id(weight): weight for weight in unsplit.parameters()}
        return Outline(
            copy.deepcopy(unsplit, own), {id(weight): live[name] for name, weight in unsplit.named_parameters()}
        )

    def filled(self, stored: WeightReading, weights: Iterable[nn.Parameter] | None = None) -> "Outline":
        """The same with these weights read, on the CPU; all of them if none are named."""
        chosen = list(self.network.parameters()) if weights is None else list(weights)
        memo: dict[int, object] = {id(weight): weight for weight in self.network.parameters()}
        for weight in chosen:
            name = self.names[id(weight)]
            memo[id(weight)] = nn.Parameter(stored([name])[name].to(weight.dtype), requires_grad=weight.requires_grad)
        return Outline(copy.deepcopy(self.network, memo), self.names)

    def reader(self, model: nn.Module, stored: WeightReading) -> WeightReading:
        """What reads weights by the names that they have in `model`, which holds those of this network."""

        def read(names: Sequence[str]) -> dict[str, Tensor]:
            keys = {name: self.names[id(model.get_parameter(name))] for name in names}
            found = stored(list(dict.fromkeys(keys.values())))
            return {name: found[key] for name, key in keys.items()}

        return read


def backend_in_pieces(backend: Backend) -> ShardedBackend | None:
    """The backend that deals networks out, where weights are pieces of whole tensors (dp_shard, tp_size)."""
    inner = backend.inner if isinstance(backend, SequenceBackend) else backend
    return inner if isinstance(inner, ShardedBackend) else None


def live_weights(backend: ShardedBackend, networks: Iterable[nn.Module]) -> dict[int, Tensor]:
    """The weights of those networks that lie in pieces, by id, each once."""
    return {id(weight): weight for network in networks if network in backend.sharded for weight in network.parameters()}
