"""When the run's state reaches the disk, what stays there, and how a run goes on from it."""

import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nearstep.checkpoint import files
from nearstep.checkpoint.contents import CheckpointContent, CheckpointLabel, WholeContent
from nearstep.checkpoint.export import ModelFolders
from nearstep.checkpoint.piece_saves import PieceSaves
from nearstep.checkpoint.resume import AUTO, Resumed, choose_checkpoint, refuse_other, refuse_used, settings_to_keep
from nearstep.checkpoint.sampled_ahead import take_up
from nearstep.checkpoint.seal import SaveKind, read_manifest
from nearstep.checkpoint.snapshot import FOLDER, Snapshot, put_back, read_snapshot, take_snapshot
from nearstep.checkpoint.start import begin_of_run, check_begin, check_same_head, has_same_data
from nearstep.checkpoint.writer import BackgroundWriter
from nearstep.common.errors import CheckpointError, ConfigError, TrainingError
from nearstep.common.telling import tell
from nearstep.common.waiting import waiting
from nearstep.config.ppo import PPOConfig
from nearstep.reports.run_folder import CHECKPOINT, checkpoints, update_of
from nearstep.reports.run_report import ReportMemory
from nearstep.scale.backend import Backend
from nearstep.scale.stepping import MakesSteppers
from nearstep.training.courses import moving_courses
from nearstep.training.optimizers import Learners
from nearstep.training.recipe import Due
from nearstep.training.shared_ahead import SampledAhead
from nearstep.training.state import State

SUPERSEDED = "superseded"
TIMED_KEPT = 2  # of the checkpoints that save_minutes makes, where save_total_limit is not given


@dataclass
class Checkpoints:
    """Saves a run as `checkpoint-N` folders, removes what is no longer needed, and restores one.

    Only rank 0 writes, or all processes do, each its own part; all read.
    """

    config: PPOConfig
    folders: ModelFolders
    learners: Learners
    updates: int  # of the whole run
    batch: int  # episodes of an update
    rows: int | None  # of the data; None for a stream
    data: str  # hash of it
    named: Mapping[str, object]  # settings that Python's arguments gave: names of models and data
    backend: Backend
    remember: Callable[[], ReportMemory]  # what the report would have to know again
    recall: Callable[[ReportMemory], None]
    announce: Callable[[int, Path], None]  # called with every saved folder
    announce_whole: bool  # whether who hears of a folder reads it at once, so that it is awaited
    resumed: Resumed | None = None  # what the run goes on from; None for a new one, and once it is loaded
    pieces: PieceSaves | None = None  # where every process writes its own part
    ahead: SampledAhead | None = None  # rows that were sampled ahead; None where none are
    parent: str | None = None  # seal of the checkpoint that the run was forked from
    failed: int = 0  # saves that did not succeed, with on_save_error = continue
    _begun: Mapping[str, Any] = field(default_factory=dict)  # what the run began with, once it has begun
    _writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    _saved_at: float = field(default_factory=time.monotonic)
    _saved_update: int = 0  # of the checkpoint that was begun or loaded last

    @property
    def run(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    def go_on_from(self, place: str | Path | bool) -> None:
        """Choose what `load` will load: a folder, "auto", or true for the newest whole checkpoint that must be there.

        Raises CheckpointError and ConfigError as `choose_checkpoint` does.
        """
        if place is False:
            return
        self.resumed = choose_checkpoint(self.run, AUTO if place is True else str(place), self._kept())
        if place is True and self.resumed is None:
            raise CheckpointError(f"{self.run} holds no checkpoint to go on from")

    def load(self, state: State) -> None:
        """Clear away what a death left half done, and put the run where its checkpoint stands; nothing for a new run.

        Checkpoints of later updates belong to a course that is given up; they move to `superseded/`. Raises ConfigError
        where a new run would write into the folder of another.
        """
        if state.update == 0 and (self.resumed is None or self.resumed.is_fork):
            refuse_used(self.run)
        elif self.resumed is not None:
            refuse_other(self.run, self.resumed.folder)
        if not self._begun:
            self._begun = begin_of_run(
                self.folders.models, self.rows, self.data, updates=self.updates, batch=self.batch,
                gathered=self.backend.gathered if isinstance(self.backend, MakesSteppers) else nullcontext,
            )  # fmt: skip
        self.backend.wait_for_all()  # or a fast process writes before a slow one has looked
        if self.backend.is_main:
            for left in self.run.glob(f".{CHECKPOINT}*"):
                files.remove(left)
        if self.resumed is not None:
            manifest, folder = self.resumed.manifest, self.resumed.folder / FOLDER
            self.parent = manifest.seal if self.resumed.is_fork else manifest.parent
            for note in [*self.resumed.notes, f"going on from {self.resumed.folder}, after update {manifest.update}"]:
                tell(note)
            check_same_head(self.resumed.folder, self._begun)
            if not self.resumed.is_fork:
                courses = moving_courses(self.config, has_critic=self.learners.critic is not None)
                for note in check_begin(self.resumed.folder, self._begun, courses):
                    tell(note)
            snapshot = read_snapshot(folder)
            done = manifest.update
            if done > self.updates:
                raise ConfigError(
                    f"{self.resumed.folder} stands after update {done}, and this run has {self.updates} updates: give "
                    "more total_episodes"
                )
            self.recall(snapshot.report)  # before the weights: the start may have to answer again
            put_back(snapshot, self.learners, state, str(folder))
            if not has_same_data(self.resumed.folder, self._begun):
                state.first_answers = None  # of a fork: their prompts are not there
            note_of_ahead = take_up(self.ahead, snapshot, self.resumed, self._kept(), self._begun)
            if note_of_ahead is not None:
                tell(note_of_ahead)
            if self.backend.is_main and not self.resumed.is_fork:
                self._supersede(state.update)
            self._saved_update = 0 if self.resumed.is_fork else state.update
            self.resumed = None  # whoever calls train once more goes on from where the run is
        self.backend.wait_for_all()

    def step(self, state: State, due: Due, *, best: bool) -> None:
        """Save if that is due, or if this is the best and such are kept. What is kept also serves against faults."""
        every = self.config.keep_steps
        if every is not None and state.update % every == 0:
            self.save(state, "kept")
        elif best and self.config.keep_best:
            self.save(state, "best")
        elif due.save or self._minutes_passed():
            self.save(state, "fault")

    def save(self, state: State, kind: SaveKind) -> None:
        """Write `checkpoint-N` beside the training; returns once all that it needs is copied.

        Raises TrainingError for weights that are not finite, and where this or the last save failed.
        """
        snapshot = take_snapshot(self.learners, state, self.remember(), self.ahead)
        own = snapshot.not_finite()
        found = self.backend.everywhere(own) if self.backend.in_step else [own]  # pieces of one weight lie on several
        broken = next(filter(None, found), None)
        if broken is not None:
            self.wait()  # what is still being written may be the last checkpoint that the message names
            raise TrainingError(
                f"update {state.update}: {broken} is not finite, and is not saved. {self._last_whole()}"
            )
        content = self._copied(snapshot, state)
        label = CheckpointLabel(state.update, kind, self.parent, self._kept(), self._begun)
        if content is not None:
            self.wait()
            self._writer.start(lambda: self._write(content, label))
        if self.announce_whole:
            self.wait()
            self.backend.wait_for_all()
        self._saved_at, self._saved_update = time.monotonic(), state.update
        self.announce(state.update, self.run / f"{CHECKPOINT}{state.update}")

    def save_unsaved(self, state: State) -> None:
        """See `save`; nothing where the last checkpoint that was begun or loaded is of this update."""
        if state.update != self._saved_update:
            self.save(state, "fault")

    def rehearse(self, state: State) -> None:
        """Before the first update: try what could fail at the end. Raises TrainingError or ModelError."""
        self.folders.rehearse(self.run, state)
        if self.pieces is not None:
            self.pieces.require_one_disk(self.run)

    def rescue(self, state: State) -> bool:
        """After a failure: write the models into the run's folder, if their weights are finite; whether it was done.

        Not where weights lie in pieces on processes that may be gone: then the last checkpoint is what remains.
        """
        if self.backend.in_step:
            return False
        if take_snapshot(self.learners, state, {}).not_finite() is not None:
            return False
        self.folders.copied(state)(self.run)
        return True

    def save_final(self, state: State) -> None:
        """Write the models of the finished run into its folder itself."""
        models = self.folders.copied(state) if self.pieces is None else None
        self.wait()
        if models is not None:
            models(self.run)
        elif self.pieces is not None:
            self.pieces.write_models(self.run, state)
        self.backend.wait_for_all()
        self.announce(state.update, self.run)

    def export_policy(self, folder: Path, state: State) -> None:
        """Write the policy alone, as a model folder of its own."""
        self.folders.export_policy(folder, state)

    def wait(self) -> None:
        """Return once nothing is being written; raises what the last save raised."""
        with waiting("the checkpoint that is being written", self._unfinished):
            self._guard(self._writer.wait)

    def close(self) -> None:
        """See `wait`."""
        self.wait()

    def _kept(self) -> dict[str, Any]:
        return settings_to_keep(self.config, self.named)

    def _copied(self, snapshot: Snapshot, state: State) -> CheckpointContent | None:
        """What this process will write; None where that is nothing. Every process calls this."""
        if self.pieces is not None:
            self.wait()  # or a process would hold its part of two checkpoints
            return self.pieces.content(snapshot, state)
        models, copied = self.folders.copied(state), snapshot.copied(main=self.backend.is_main)
        return None if copied is None else WholeContent(models, copied)

    def _write(self, content: CheckpointContent, label: CheckpointLabel) -> None:
        target = self.run / f"{CHECKPOINT}{label.update}"
        try:
            content.write(target, label)
            if self.backend.is_main:
                self._prune(label.update, label.kind)
        except OSError as error:
            raise self._no_place(target, error) from error

    def _prune(self, update: int, kind: SaveKind) -> None:
        """Remove what the new checkpoint replaces, now that it is whole: older ones of its own kind."""
        if kind == "kept":
            return
        limit = 1 if kind == "best" else self.config.save_total_limit
        if limit is None and self.config.save_steps is None:
            limit = TIMED_KEPT
        if limit is None:
            return
        alike = [folder for folder in checkpoints(self.run) if update_of(folder) <= update and _kind(folder) == kind]
        for folder in alike[:-limit]:
            files.remove(folder)

    def _minutes_passed(self) -> bool:
        """Whether save_minutes have passed since the last save, by rank 0's clock: all save or none."""
        minutes = self.config.save_minutes
        if minutes is None:
            return False
        return self.backend.gather(time.monotonic() - self._saved_at >= 60 * minutes)[0]

    def _supersede(self, update: int) -> None:
        for folder in checkpoints(self.run):
            if update_of(folder) > update:
                target = self.run / SUPERSEDED / folder.name
                files.make_folder(target.parent)
                if target.exists():
                    files.remove(target)
                files.move(folder, target)

    def _guard(self, work: Callable[[], None]) -> None:
        """Do it; with on_save_error = continue a failed save is counted, and the next one tries again."""
        try:
            work()
        except TrainingError as error:
            if self.config.on_save_error == "raise":
                raise
            self.failed += 1
            warnings.warn(f"{error} (on_save_error = continue: {self.failed} failed so far)", stacklevel=3)

    def _no_place(self, target: Path, error: OSError) -> TrainingError:
        free = shutil.disk_usage(self.run).free if self.run.exists() else 0
        return TrainingError(f"saving to {target} failed: {error} ({free:,} bytes free). {self._last_whole()}")

    def _unfinished(self) -> str:
        return ", ".join(map(str, self.run.glob(f".{CHECKPOINT}*")))

    def _last_whole(self) -> str:
        found = checkpoints(self.run)
        return f"The last checkpoint is {found[-1]}." if found else "There is no earlier checkpoint."


def _kind(folder: Path) -> SaveKind | Literal["damaged"]:
    try:
        return read_manifest(folder).kind
    except CheckpointError:
        return "damaged"
