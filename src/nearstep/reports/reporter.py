"""How a run tells what happens: the one object the loop talks to, in front of files, screen and callbacks."""

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nearstep.common.errors import TrainingError
from nearstep.config.ppo import PPOConfig
from nearstep.reports import run_folder
from nearstep.reports.callbacks import Callbacks
from nearstep.reports.console import Screen
from nearstep.reports.going_on import logged_before, make_ready, numbers_of
from nearstep.reports.health.rule import Alert
from nearstep.reports.health.watch import HealthWatch
from nearstep.reports.metrics import Numbers
from nearstep.reports.records import JsonLines, Record, metrics_record, sample_records
from nearstep.reports.run_info import RunStart
from nearstep.reports.settings_file import holds_settings, write_settings
from nearstep.reports.tracker_tables import track_samples
from nearstep.reports.unfinished import Unfinished
from nearstep.training.evaluated import Sample


class Reporter:
    """A context manager: leaving it closes the files and gives the terminal back. Callbacks run on every process."""

    def __init__(
        self,
        config: PPOConfig,
        callbacks: Callbacks,
        *,
        total_updates: int,
        main: bool,
        screen: Screen | None = None,
        settings: str = "",
        start: RunStart | None = None,
    ) -> None:
        self.history: list[dict[str, int | float]] = []
        self._settings, self._start = settings, start
        self._config, self._callbacks = config, callbacks
        self._health = HealthWatch(dataclasses.asdict(config))
        self._screen = (screen or Screen(total_updates, style=config.log_style)) if main else None
        self._outputs: _Outputs | None = None
        self._unfinished = Unfinished(Path(config.output_dir), main)

    @property
    def should_training_stop(self) -> bool:
        """Whether the run ends after this update."""
        return self._callbacks.should_training_stop

    @property
    def should_evaluate(self) -> bool:
        """Whether an evaluation is due after this update."""
        return self._callbacks.should_evaluate

    @property
    def should_save(self) -> bool:
        """Whether a model is saved after this update."""
        return self._callbacks.should_save

    @property
    def latest(self) -> Numbers:
        """The metrics logged last, those of the last evaluation among them; empty but on the main process."""
        return {} if self._outputs is None else self._outputs.latest

    def begin(self, batch_table: Sequence[tuple[str, object, str]], preview: str, *, after: int = 0) -> None:
        """Show the batch arithmetic (name, value, how it came about) and what the model sees; open files, trackers.

        Records of a run that goes on after an update are cut back to it; a new run sets those of an earlier one aside.
        Called again, it goes on in the same files: a run that was broken off is one run.
        """
        self._unfinished.begin()
        if self._outputs is not None:
            self._outputs.open()
            self._outputs.screen.begin([], "")
        elif self._screen is not None:
            self._outputs = _Outputs(self._config, self._screen, self._settings, after)
            if self._start is not None:
                self._start.write(Path(self._config.output_dir), batch_table, after)
            self._screen.begin(batch_table, preview)
        if after > 0 and not self.history:
            self._recall(after)
        self._callbacks.begin()

    def _recall(self, after: int) -> None:
        """Know what a run that goes on has logged and told up to an update, on every process."""
        folder = Path(self._config.output_dir)
        self.history = logged_before(folder, after)
        self._health.recall(self.history, folder, after)
        if self._outputs is not None:
            for line in self.history:
                self._outputs.know(numbers_of(line))

    def phase(self, name: str) -> None:
        """A phase of the update begins."""
        if self._outputs is not None:
            self._outputs.screen.phase(name)

    def step_begin(self) -> None:
        """An update begins."""
        self._callbacks.step_begin()

    def step(
        self,
        *,
        update: int,
        episode: int,
        epoch: int | float,
        records: Sequence[Record],
        numbers: Numbers,
        tokens: Sequence[Record] = (),
        profiles: Sequence[Record] = (),
    ) -> bool:
        """Update number `update` (from 1) is done: every episode is recorded; the metrics where logging is due.

        `records` are those of `rollout_records`, of all processes, `tokens` and `profiles` those of `Details`.
        Returns whether it was logged and is the best so far, where the best is chosen by a metric of training.
        """
        if self._outputs is not None:
            self._outputs.record(self._outputs.rollouts, records)
            self._outputs.record(self._outputs.tokens, tokens)
            self._outputs.record(self._outputs.profiles, profiles)
        self._callbacks.step_end(update=update, epoch=epoch)
        logged, alerts = self._callbacks.should_log, list[Alert]()
        if logged and self._config.health_checks:
            alerts = self._health.add({"update": update, "episode": episode, **numbers})
            numbers = {**numbers, "health/level": self._health.level}
        if self._outputs is not None:
            place = f"episode {episode}  epoch {epoch:.2f}"
            self._outputs.screen.step(update, numbers, logged=logged, place=place)
            if logged:
                self._outputs.log(update=update, episode=episode, epoch=epoch, numbers=numbers)
            self._outputs.alert(update, alerts)
        if logged:
            self.history.append({"update": update, "episode": episode, "epoch": epoch, **numbers})
            self._callbacks.log({"episode": episode, **numbers})
        return logged and self._callbacks.is_best_update(numbers)

    def note(self, text: str) -> None:
        """Say one thing in a line of its own."""
        if self._outputs is not None:
            self._outputs.screen.note(text)

    def samples(self, update: int, rows: Sequence[Sample]) -> None:
        """Show sample completions, record them in samples.jsonl, and hand them to trackers as a table."""
        if self._outputs is not None:
            self._outputs.screen.samples(update, rows)
            self._outputs.record(self._outputs.samples, sample_records(update, rows))
            track_samples(self._callbacks.trackers, update, rows)

    def evaluation(
        self, *, update: int, episode: int, epoch: int | float, numbers: Numbers, rows: Sequence[Record] = ()
    ) -> bool:
        """Report an evaluation; `numbers` have training's names (objective/scores, …) and get `eval/` in front.

        Its rows are those of eval_rollouts.jsonl. Returns whether it is the best so far.
        """
        named = {f"eval/{name}": number for name, number in numbers.items()}
        self.history.append({"update": update, "episode": episode, "epoch": epoch, **named})
        alerts = self._health.add({"update": update, **named}) if self._config.health_checks else []
        if self._outputs is not None:
            self._outputs.log(update=update, episode=episode, epoch=epoch, numbers=named)
            self._outputs.screen.evaluation(update, numbers)
            self._outputs.record(self._outputs.evaluations, rows)
            self._outputs.alert(update, alerts)
        return self._callbacks.evaluate(numbers)

    def callbacks_state(self) -> dict[str, Any]:
        """What callbacks have to know again in a resumed run."""
        return self._callbacks.state_dict()

    def restore_callbacks(self, state: Mapping[str, Any]) -> None:
        """Give callbacks what `callbacks_state` took."""
        self._callbacks.load_state_dict(state)

    def saved(self, update: int, folder: Path) -> None:
        """Models were saved in `folder`."""
        if self._outputs is not None:
            self._outputs.screen.saved(update, folder)
            self._outputs.models = folder
        self._callbacks.save()

    def end(self) -> None:
        """The run is over: close trackers and files, say how it went and where everything lies."""
        self._callbacks.end()
        if self._outputs is not None:
            self._outputs.end()
        self._unfinished.end()

    def __enter__(self) -> "Reporter":
        self._unfinished.claim()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._unfinished.leave(error)
        if self._outputs is not None:
            self._outputs.close()


class _Outputs:
    """The files and the screen of the main process, from the beginning of the run to its end."""

    def __init__(self, config: PPOConfig, screen: Screen, settings: str, after: int) -> None:
        folder = Path(config.output_dir)
        self.screen = screen
        # A run that died before its first checkpoint and begins again is the same run: its records begin again too.
        # A fork begins without checkpoints of its own, and records of others may lie there.
        own = after > 0 and (config.fork_from is None or bool(run_folder.checkpoints(folder)))
        goes_on = own or (config.resume is not None and holds_settings(folder, settings))
        kept = make_ready(folder, after, goes_on=goes_on)
        if settings and (place := write_settings(folder, settings)) is not None:
            kept[run_folder.SETTINGS] = place
        for name, place in kept.items():
            screen.note(f"{name} of an earlier run is kept as {place.name}")
        self._config = config
        self._ended: set[Path] = set()  # files that are written no more
        self.open()
        self.models: Path | None = None
        self.latest: dict[str, int | float] = {}
        self._first: dict[str, int | float] = {}

    def open(self) -> None:
        """Open the files, which are continued where they are there."""
        folder, config = Path(self._config.output_dir), self._config
        self.metrics = JsonLines(folder / run_folder.METRICS)
        most = config.rollouts_max_mib
        self.rollouts = JsonLines(folder / run_folder.ROLLOUTS, most) if config.log_rollouts else None
        self.alerts: JsonLines | None = None  # there is none while there is nothing to tell
        self.samples = JsonLines(folder / run_folder.SAMPLES) if config.num_sample_generations > 0 else None
        self.tokens = JsonLines(folder / run_folder.TOKENS, most) if config.record_token_rows > 0 else None
        self.profiles = JsonLines(folder / run_folder.PROFILES)
        self.evaluations = JsonLines(folder / run_folder.EVAL_ROLLOUTS)

    def log(self, *, update: int, episode: int, epoch: int | float, numbers: Numbers) -> None:
        """Record the metrics of an update or an evaluation."""
        self.record(self.metrics, [metrics_record(update=update, episode=episode, epoch=epoch, numbers=numbers)])
        self.know(numbers)

    def know(self, numbers: Numbers) -> None:
        """Take in what was logged last."""
        self.latest = {**self.latest, **numbers}
        self._first = {**numbers, **self._first}

    def alert(self, update: int, alerts: Sequence[Alert]) -> None:
        """Record what the rules of health found; on the screen stands what follows from nothing else."""
        if not alerts:
            return
        if self.alerts is None:
            self.alerts = JsonLines(self.metrics.path.with_name(run_folder.ALERTS))
        self.record(self.alerts, [alert.record(update) for alert in alerts])
        for alert in alerts:
            if not alert.is_consequence and alert.seen.level != "info":
                self.screen.alert(f"{alert.seen.level} after update {update}: {alert.rule.title}. {alert.seen.text}")

    def record(self, file: JsonLines | None, records: Sequence[Record]) -> None:
        """Append to a file. One that cannot be written, or is full, ends there and is told of; the run goes on."""
        if file is None or file.path in self._ended or file.is_full:
            return
        try:
            file.write(records)
        except TrainingError as error:
            self._end_file(file, f"{error}: it ends here, and the run goes on without it")
        if file.is_full:
            self._end_file(file, f"{file.path.name} has reached rollouts_max_mib and ends here")

    def _end_file(self, file: JsonLines, why: str) -> None:
        self._ended.add(file.path)
        self.screen.note(why)

    def end(self) -> None:
        """Close everything; show the first and last logged numbers and where things lie."""
        self.close()
        places = [(file.path.stem, file.path) for file in self._files if file.path.exists()]
        if self.models is not None:
            places.insert(0, ("models", self.models))
        tensorboard = self.metrics.path.with_name(run_folder.TRACKER)
        if tensorboard.is_dir():
            places.append(("tensorboard", tensorboard))
        self.screen.end(places, self._first, self.latest)
        folder = shlex.quote(self._config.output_dir)
        self.screen.note(f"To look at it in a browser, from curves to single tokens: nearstep report {folder}")

    def close(self) -> None:
        """Close the files and give the terminal back; closing twice is fine."""
        for file in self._files:
            file.close()
        self.screen.close()

    @property
    def _files(self) -> list[JsonLines]:
        every = (self.metrics, self.rollouts, self.samples, self.evaluations, self.tokens, self.profiles, self.alerts)
        return [file for file in every if file is not None]
