"""What a checkpoint holds of a run beside model folders: all that its next update depends on, as tensors and plain
values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nearstep.algorithm.statistics import Moments
from nearstep.checkpoint import files
from nearstep.checkpoint.learner_state import first_not_finite, learner_likes, learner_tensors, restore_learner
from nearstep.checkpoint.piece_files import StoredTensors
from nearstep.common.errors import CheckpointError
from nearstep.scale.shards import InPieces, whole_tensor
from nearstep.training.first_answers import FirstAnswers
from nearstep.training.optimizers import Learner, Learners
from nearstep.training.shared_ahead import SampledAhead
from nearstep.training.state import State, Steps

FOLDER = "training"
VALUES = "state.json"
ANSWERS = "first_answers"
AHEAD = "ahead.safetensors"
PIECES = "pieces"  # where every process has written its own part of the networks' tensors
STATE_FIELDS = tuple(each.name for each in fields(State) if each.compare)
# What checkpoints of earlier versions lack, as it stood then.
ADDED_LATER: Mapping[str, Any] = {
    "part_moments": {},
    "critic_is_ready": False,
    "critic_is_pretrained": False,
    "selection": None,
}


@dataclass(frozen=True)
class Snapshot:
    """Tensors by network and name, the state of the run, what the report remembers, the policy's first answers, and
    what was sampled ahead: plain values and the finished rows, None where nothing is."""

    networks: Mapping[str, Mapping[str, Tensor | InPieces]]
    state: Mapping[str, Any]
    report: Mapping[str, Any]
    answers: Mapping[str, Tensor] = field(default_factory=dict)  # never changed; none where the run keeps none
    ahead: tuple[Mapping[str, Any], Mapping[str, Tensor]] | None = None
    stored: StoredTensors | None = None  # where the tensors of the networks lie that are read part by part

    def copied(self, *, main: bool) -> "Snapshot | None":
        """The same in memory of its own, on the CPU and whole, on the main process: training may go on while it is
        written. None elsewhere; every process calls this, for tensors in pieces are gathered, one after the other.
        """
        copies: dict[str, dict[str, Tensor]] = {}
        for network, tensors in self.networks.items():
            for name, tensor in tensors.items():
                whole = whole_tensor(tensor)
                if main:
                    copies.setdefault(network, {})[name] = whole.to("cpu", copy=True)
        if not main:
            return None
        networks = {name: copies.get(name, {}) for name in self.networks}
        return replace(self, networks=networks)

    def not_finite(self) -> str | None:
        """The first weight or moment that holds a NaN or an infinity, in this process; None where there is none."""
        for network, tensors in self.networks.items():
            name = first_not_finite(tensors)
            if name is not None:
                return f"{network}: {name}"
        return None

    def write(self, folder: Path, *, in_pieces: bool = False) -> None:
        """Write one file of tensors for each network, and one of values that lists the names of all tensors. Where they
        lie there `in_pieces` the networks' own are left out."""
        files.make_folder(folder)
        answers = {ANSWERS: self.answers} if self.answers else {}
        every = {**self.networks, **answers}
        for name, tensors in (answers if in_pieces else every).items():
            files.write_tensors(folder / f"{name}.safetensors", _all_whole(tensors))
        names = {name: sorted(tensors) for name, tensors in every.items()}
        values = {"state": self.state, "report": self.report, "tensors": names}
        if self.ahead is not None:
            values["ahead"] = self.ahead[0]
            files.write_tensors(folder / AHEAD, self.ahead[1])
        files.write_text(folder / VALUES, files.as_json(values))


def take_snapshot(
    learners: Learners, state: State, report: Mapping[str, Any], ahead: SampledAhead | None = None
) -> Snapshot:
    """The run as it is now; tensors are the run's own."""
    networks = {name: learner_tensors(learner) for name, learner in by_network(learners).items()}
    values = asdict(replace(state, before=None, first_answers=None))
    answers = {} if state.first_answers is None else vars(state.first_answers)
    remembered = None if ahead is None else ahead.memory()
    return Snapshot(networks, {name: values[name] for name in STATE_FIELDS}, report, answers, remembered)


def read_snapshot(folder: Path) -> Snapshot:
    """What `write` has written. Raises CheckpointError where an entry is missing."""
    path = folder / VALUES
    content = files.read_json(path)
    absent = {"state", "report", "tensors"} - content.keys()
    if absent:
        raise CheckpointError(f"{path}: {sorted(absent)[0]} is missing")
    stored = StoredTensors.open(folder / PIECES) if (folder / PIECES).exists() else None
    networks: dict[str, dict[str, Tensor]] = {}
    for network, names in content["tensors"].items():
        if stored is not None and network != ANSWERS:
            networks[network] = {}
            stored.require(stored_name(network, name) for name in names)
            continue
        file = folder / f"{network}.safetensors"
        networks[network] = files.read_tensors(file)
        for name in names:
            if name not in networks[network]:
                raise CheckpointError(f"{file}: {name} is missing")
    answers = networks.pop(ANSWERS, {})
    ahead = (content["ahead"], files.read_tensors(folder / AHEAD)) if "ahead" in content else None
    return Snapshot(networks, content["state"], content["report"], answers, ahead, stored)


def stored_name(network: str, name: str) -> str:
    """How a tensor of a network is called among those of all."""
    return f"{network}/{name}"


def _read_for(snapshot: Snapshot, network: str, learner: Learner) -> dict[str, Tensor]:
    """The tensors of a network: whole, or in the pieces in which its weights lie here."""
    if snapshot.stored is None:
        return _all_whole(snapshot.networks[network])
    likes = learner_likes(learner)
    prefix, entries = stored_name(network, ""), snapshot.stored.entries
    own = {name.removeprefix(prefix): name for name in entries if name.startswith(prefix)}
    nothing = torch.empty(0)
    found = snapshot.stored.dealt({full: likes.get(name.rsplit(":", 1)[0], nothing) for name, full in own.items()})
    return {name: found[full] for name, full in own.items()}


def _all_whole(tensors: Mapping[str, Tensor | InPieces]) -> dict[str, Tensor]:
    """The tensors of a copy or of a file."""
    whole = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    assert len(whole) == len(tensors), "copied() comes before tensors in pieces are written"
    return whole


def put_back(snapshot: Snapshot, learners: Learners, state: State, place: str) -> None:
    """Set weights, moments, learning rates and state to those of the snapshot.

    The learning rates are walked rather than stored: their course belongs to the settings, which may give the run more
    updates now. Raises CheckpointError where the snapshot is of other networks.
    """
    wanted = by_network(learners)
    if snapshot.networks.keys() != wanted.keys():
        held, trained = (" and ".join(sorted(networks)) for networks in (snapshot.networks, wanted))
        raise CheckpointError(
            f"{place} holds {held}, and this run trains {trained}: "
            "keep the settings that say whether there is a critic (advantage, critic_trunk), or begin a run of its own "
            "with the checkpoint's policy/ as model_name_or_path"
        )
    values: dict[str, Any] = {**ADDED_LATER, **snapshot.state}
    for name in STATE_FIELDS:
        if name not in values:
            raise CheckpointError(f"{place}: state.{name} is missing")
    for network, learner in wanted.items():
        source = f"{network}.safetensors" if snapshot.stored is None else f"{PIECES} ({network})"
        restore_learner(learner, _read_for(snapshot, network, learner), f"{place}/{source}")
    values["steps"], values["score_moments"] = Steps(**values["steps"]), Moments(**values["score_moments"])
    values["part_moments"] = {name: Moments(**moments) for name, moments in values["part_moments"].items()}
    for _ in range(state.update, values["update"]):
        learners.end_update()
    for name in STATE_FIELDS:
        setattr(state, name, values[name])
    state.first_answers = FirstAnswers(**snapshot.answers) if snapshot.answers else None


def by_network(learners: Learners) -> dict[str, Learner]:
    """The learners by the names that metrics use."""
    return {"policy": learners.policy, **({} if learners.critic is None else {"value": learners.critic})}
