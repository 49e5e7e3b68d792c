"""What a save writes once all of it is copied: a checkpoint, as whole tensors by one process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nearstep.checkpoint import files
from nearstep.checkpoint.export import Writing
from nearstep.checkpoint.resume import BEGUN, SETTINGS
from nearstep.checkpoint.seal import SaveKind, sealed_folder
from nearstep.checkpoint.snapshot import FOLDER, Snapshot


@dataclass(frozen=True)
class CheckpointLabel:
    """What a checkpoint says of itself."""

    update: int
    kind: SaveKind
    parent: str | None
    kept: Mapping[str, Any]  # settings that a continuation must share
    begun: Mapping[str, Any]  # what the run began with

    def write(self, folder: Path) -> None:
        """The files that are not the run's state."""
        files.write_text(folder / SETTINGS, files.as_json(self.kept))
        files.write_text(folder / BEGUN, files.as_json(self.begun))


@runtime_checkable
class CheckpointContent(Protocol):
    """A copy of what a checkpoint holds, which may be written while training goes on."""

    def write(self, target: Path, label: CheckpointLabel) -> None:
        """Write the checkpoint `target`. Raises OSError or TrainingError; then it is not there."""


@dataclass(frozen=True)
class WholeContent:
    """Whole tensors; the main process alone has them and writes."""

    models: Writing
    snapshot: Snapshot

    def write(self, target: Path, label: CheckpointLabel) -> None:
        """See CheckpointContent.write."""
        with sealed_folder(target, update=label.update, kind=label.kind, parent=label.parent) as folder:
            self.models(folder)
            self.snapshot.write(folder / FOLDER)
            label.write(folder)
