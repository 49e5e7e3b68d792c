"""Saves to which every process brings its own part, so that none holds a network whole: what each copies and writes."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from nearstep.checkpoint import files
from nearstep.checkpoint.contents import CheckpointLabel
from nearstep.checkpoint.learner_state import WEIGHT, weight_names
from nearstep.checkpoint.piece_files import StoredTensors, own_files, write_boxes
from nearstep.checkpoint.seal import FileSum, sealed_folder
from nearstep.checkpoint.snapshot import FOLDER, PIECES, Snapshot, by_network, stored_name
from nearstep.checkpoint.streamed_folders import StreamedFolders, StreamedWriting
from nearstep.common.attempts import reason
from nearstep.common.errors import NearstepError, TrainingError
from nearstep.models.streamed_saving import WeightReading
from nearstep.scale.boxes import Box, Cutter, scattered
from nearstep.scale.peers import GONE_SECONDS, who_is_gone
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import NO_LIMIT
from nearstep.training.optimizers import Learners
from nearstep.training.state import State

SCRATCH = ".frozen"  # weights that do not train, while model folders are made of them
FINAL = ".checkpoint-models"  # all weights, while the folders at the end are; its name is that of a save left half done

Found = TypeVar("Found")


@dataclass(frozen=True)
class OwnTensors:
    """What this process writes of some tensors, and the bytes of each whole one."""

    boxes: Mapping[str, Box]
    sizes: Mapping[str, int]

    def copied(self) -> "OwnTensors":
        """The same in memory of its own, on the CPU."""
        return replace(self, boxes={name: replace(box, part=box.part.to("cpu", copy=True))
                                    for name, box in self.boxes.items()})  # fmt: skip


@dataclass(frozen=True)
class _ToldFailure:
    """What failed in a process, in words; whether these are meant for the user as they are."""

    text: str
    is_told: bool


class _SharedAttempt:
    """A context that keeps what fails within, for all processes to hear of it. Interrupts go their way."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self.failure: _ToldFailure | None = None

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Put an error into words."""
        rank = self._rank
        if isinstance(error, CheckpointException):  # torch's: of any process, raised on all of them
            rank, (error, _) = min(error.failures.items())
        if not isinstance(error, Exception):
            return False
        is_told = isinstance(error, NearstepError)
        self.failure = _ToldFailure(str(error) if is_told else f"rank {rank}: {reason(error)}", is_told)
        return True


@dataclass(frozen=True)
class Party:
    """All processes, in a group of their own: what training says to each other is not mixed with it."""

    backend: ShardedBackend
    group: dist.ProcessGroup

    def agree(self, work: Callable[[], Found]) -> list[Found]:
        """Do it in each process; what came of it in all of them. Where one fails none goes on.

        Raises on all processes what failed first: TrainingError, or OSError with the process and its reason.
        """
        trial = _SharedAttempt(self.backend.processes.rank)
        outcomes: list[Found] = []
        with trial:
            outcomes.append(work())
        everyone = [(outcomes, trial.failure)] * self.group.size()
        try:
            dist.all_gather_object(everyone, (outcomes, trial.failure), group=self.group)
        except RuntimeError as error:
            gone = who_is_gone(self.backend.processes.others, GONE_SECONDS)
            raise OSError(gone or f"another process does not answer ({error})") from error
        for _, failure in everyone:
            if failure is not None:
                raise TrainingError(failure.text) if failure.is_told else OSError(failure.text)
        return [found for (found,), _ in everyone]


@dataclass(frozen=True)
class PieceContent:
    """This process's part of a checkpoint, see CheckpointContent; every process has and writes one."""

    party: Party
    own: OwnTensors
    frozen: OwnTensors  # what does not train; not copied
    snapshot: Snapshot  # its values; the tensors are in `own`
    models: StreamedWriting

    def write(self, target: Path, label: CheckpointLabel) -> None:
        """See CheckpointContent.write. The seal comes once every process has written; where one fails there is none."""
        main, sums = self.party.backend.is_main, dict[str, FileSum]()
        unfinished = target.with_name(f".{target.name}.unfinished")
        with ExitStack() as stack:
            if main:
                folder = sealed_folder(
                    target, update=label.update, kind=label.kind, parent=label.parent, layout="pieces", sums=sums
                )
            self.party.agree(lambda: stack.enter_context(folder) if main else None)
            self.party.agree(lambda: require_seen(unfinished))
            found = self.party.agree(lambda: self._write_own(unfinished))
            for each in found:
                sums.update(each)
            self.party.agree(lambda: self._finish(unfinished, label, stack) if main else None)

    def _write_own(self, folder: Path) -> dict[str, FileSum]:
        """This process's files, and their sums."""
        pieces = folder / FOLDER / PIECES
        write_boxes(pieces, self.own.boxes, self.own.sizes, self.party.group)
        if self.frozen.sizes:
            write_boxes(folder / SCRATCH, self.frozen.boxes, self.frozen.sizes, self.party.group)
        written = own_files(pieces, self.party.backend.processes.rank)  # torch has synced them
        return {path.relative_to(folder).as_posix(): FileSum.of(path) for path in written}

    def _finish(self, folder: Path, label: CheckpointLabel, stack: ExitStack) -> None:
        """What the main process writes once all parts lie there, and the seal."""
        self.models(folder, stored_in(folder / FOLDER / PIECES, folder / SCRATCH))
        if (folder / SCRATCH).exists():
            files.remove(folder / SCRATCH)
        self.snapshot.write(folder / FOLDER, in_pieces=True)
        label.write(folder)
        stack.close()


@dataclass
class PieceSaves:
    """Makes the contents of a run's checkpoints."""

    folders: StreamedFolders
    learners: Learners
    _party: list[Party] = field(default_factory=list)  # one, from the first save on

    @property
    def backend(self) -> ShardedBackend:
        """Whose networks they are."""
        return self.folders.backend

    @property
    def party(self) -> Party:
        """The group that saves. Every process asks for it at the same time."""
        if not self._party:
            with self.backend.processes.together("those who save together"):
                self._party.append(Party(self.backend, dist.new_group(backend="gloo", timeout=NO_LIMIT)))
        return self._party[0]

    def content(self, snapshot: Snapshot, state: State) -> PieceContent:
        """What this process has of a checkpoint, copied. Every process calls this."""
        names = self._names()
        tensors: dict[str, Tensor] = {}
        for network, found in snapshot.networks.items():
            for name, tensor in found.items():
                assert isinstance(tensor, Tensor), "pieces of another form are saved whole"
                tensors[stored_name(network, name)] = tensor
        own, frozen = self._own(tensors).copied(), self._own(self.folders.frozen(names))
        every = names | self._frozen_names(names)
        return PieceContent(self.party, own, frozen, snapshot, self.folders.writing(state, every))

    def write_models(self, folder: Path, state: State) -> None:
        """Write the model folders into `folder`, by way of files in pieces. Every process calls this.

        Raises TrainingError where that failed on any of them.
        """
        names = self._names()
        own = self._own(self._trained() | self.folders.frozen(names))
        write, party = self.folders.writing(state, names | self._frozen_names(names)), self.party
        scratch = folder / FINAL

        try:
            party.agree(lambda: files.make_folder(scratch) if self.backend.is_main else None)
            party.agree(lambda: require_seen(scratch))
            party.agree(lambda: write_boxes(scratch, own.boxes, own.sizes, party.group))
            party.agree(lambda: write(folder, stored_in(scratch)) if self.backend.is_main else None)
        except OSError as error:
            raise TrainingError(f"saving to {folder} failed: {error}") from error
        finally:
            if self.backend.is_main and scratch.exists():
                files.remove(scratch)

    def require_one_disk(self, folder: Path) -> None:
        """Raise TrainingError where processes do not see the same files under `folder`. Every process calls this."""
        token = folder / FINAL
        if self.backend.is_main:
            files.make_folder(token)
        self.backend.wait_for_all()
        seen = self.backend.everywhere(token.is_dir())
        if self.backend.is_main:
            files.remove(token)
        if not all(seen):
            raise TrainingError(not_seen(folder, seen.index(False)))

    def _trained(self) -> dict[str, Tensor]:
        """The weights that learn, by the name that they are stored under; of narrow ones the masters."""
        return {
            stored_name(network, f"{name}:{WEIGHT}"): weight.detach()
            for network, learner in by_network(self.learners).items()
            for name, weight in zip(weight_names(learner), learner.parameters, strict=True)
        }

    def _names(self) -> dict[int, str]:
        """The same names by the id of the networks' own weights."""
        return {
            id(weight): stored_name(network, f"{name}:{WEIGHT}")
            for network, learner in by_network(self.learners).items()
            for name, weight in zip(weight_names(learner), learner.weights, strict=True)
        }

    def _frozen_names(self, trained: Mapping[int, str]) -> dict[int, str]:
        return {id(weight): name for name, weight in self.folders.frozen(trained).items()}

    def _own(self, tensors: Mapping[str, Tensor]) -> OwnTensors:
        everyone = self.backend.everywhere(scattered(tensors))
        cutter = Cutter.of(tensors, everyone, self.backend.processes.rank)
        with self.backend.processes.together("tensors that are cut anew"):
            cut = {name: cutter.own(name, tensor) for name, tensor in tensors.items()}
        boxes = {name: box for name, box in cut.items() if box is not None}
        return OwnTensors(boxes, {name: tensor.numel() * tensor.element_size() for name, tensor in tensors.items()})


def stored_in(*folders: Path) -> WeightReading:
    """What reads whole tensors from the folders that are there, by the names that they are stored under."""
    found = [StoredTensors.open(folder) for folder in folders if folder.exists()]

    def read(names: Sequence[str]) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for each in found:
            tensors |= each.whole([name for name in names if name in each.entries])
        return tensors

    return read


def require_seen(folder: Path) -> None:
    """Raise TrainingError where this process does not see a folder that the main one has made."""
    if not folder.is_dir():
        raise TrainingError(not_seen(folder, dist.get_rank()))


def not_seen(folder: Path, rank: int) -> str:
    """The sentence for that."""
    return (
        f"rank {rank} does not see {folder}, which rank 0 has made: every process writes its own part of a checkpoint, "
        "so that output_dir must be on a disk that all machines share. Give one, or sharded_checkpoints = false"
    )
