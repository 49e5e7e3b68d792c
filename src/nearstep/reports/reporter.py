"""How a run tells what happens: the one object the loop talks to, in front of files, screen and callbacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nearstep.common.errors import TrainingError
from nearstep.config.ppo import PPOConfig
from nearstep.reports.callbacks import Callbacks
from nearstep.reports.console import Screen
from nearstep.reports.metrics import Numbers
from nearstep.reports.records import JsonLines, Record, cut_after, metrics_record, sample_records, set_aside
from nearstep.reports.settings_file import NAME as SETTINGS
from nearstep.reports.settings_file import holds_settings, write_settings
from nearstep.reports.unfinished import Unfinished


def sample_updates(total_updates: int, num_sample_generations: int) -> frozenset[int]:
    """Updates (from 1) that show sample completions: at most as many as asked, evenly spread, the last one in.

    >>> sorted(sample_updates(10, 3))
    [4, 7, 10]
    """
    count = min(total_updates, num_sample_generations)
    return frozenset(-(-total_updates * number // count) for number in range(1, count + 1))


class Reporter:
    """A context manager: leaving it closes the files and gives the terminal back, whatever happened.

    Writes and prints on the main process alone; callbacks run on every process. Files are made by `begin`, not
    before.
    """

    def __init__(
        self,
        config: PPOConfig,
        callbacks: Callbacks,
        *,
        total_updates: int,
        main: bool,
        screen: Screen | None = None,
        settings: str = "",
    ) -> None:
        self.history: list[dict[str, int | float]] = []
        self._settings = settings
        self._config = config
        self._callbacks = callbacks
        self._screen = (screen or Screen(total_updates, two_lines=config.log_style == "two_line")) if main else None
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
            self._screen.begin(batch_table, preview)
        self._callbacks.begin()

    def phase(self, name: str) -> None:
        """A phase of the update begins."""
        if self._outputs is not None:
            self._outputs.screen.phase(name)

    def step_begin(self) -> None:
        """An update begins."""
        self._callbacks.step_begin()

    def step(
        self, *, update: int, episode: int, epoch: int | float, records: Sequence[Record], numbers: Numbers
    ) -> None:
        """Update number `update` (from 1) is done: every episode is recorded; the metrics where logging is due.

        `records` are those of `rollout_records`, of all processes.
        """
        if self._outputs is not None:
            self._outputs.record(self._outputs.rollouts, records)
        self._callbacks.step_end(update=update, epoch=epoch)
        logged = self._callbacks.should_log
        if self._outputs is not None:
            self._outputs.screen.step(update, numbers, logged=logged)
            if logged:
                self._outputs.log(update=update, episode=episode, epoch=epoch, numbers=numbers)
        if logged:
            self.history.append({"update": update, "episode": episode, "epoch": epoch, **numbers})
            self._callbacks.log({"episode": episode, **numbers})

    def samples(self, update: int, rows: Sequence[tuple[str, str, float]]) -> None:
        """Show sample completions (query, model response, score), and record them in samples.jsonl."""
        if self._outputs is not None:
            self._outputs.screen.samples(update, rows)
            self._outputs.record(self._outputs.samples, sample_records(update, rows))

    def evaluation(self, *, update: int, episode: int, epoch: int | float, numbers: Numbers) -> bool:
        """Report an evaluation; `numbers` have training's names (objective/scores, …) and get `eval/` in front.

        Returns whether it is the best so far.
        """
        named = {f"eval/{name}": number for name, number in numbers.items()}
        self.history.append({"update": update, "episode": episode, "epoch": epoch, **named})
        if self._outputs is not None:
            self._outputs.log(update=update, episode=episode, epoch=epoch, numbers=named)
            self._outputs.screen.evaluation(update, numbers)
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
        kept: dict[str, Path | None] = {}
        # A run that died before its first checkpoint and begins again is the same run: its records begin again too.
        again = config.resume is not None and holds_settings(folder, settings)
        for name in ("metrics.jsonl", "rollouts.jsonl", "samples.jsonl"):
            if after > 0 or again:
                cut_after(folder / name, after)
            else:
                kept[name] = set_aside(folder / name)
        if settings:
            kept[SETTINGS] = write_settings(folder, settings)
        for name, place in kept.items():
            if place is not None:
                screen.note(f"{name} of an earlier run is kept as {place.name}")
        self._config = config
        self._largest_bytes = None if config.rollouts_max_mib is None else config.rollouts_max_mib * 2**20
        self._ended: set[Path] = set()  # files that are written no more
        self.open()
        self.models: Path | None = None
        self.latest: dict[str, int | float] = {}
        self._first: dict[str, int | float] = {}

    def open(self) -> None:
        """Open the files, which are continued where they are there."""
        folder, config = Path(self._config.output_dir), self._config
        self.metrics = JsonLines(folder / "metrics.jsonl")
        self.rollouts = JsonLines(folder / "rollouts.jsonl") if config.log_rollouts else None
        self.samples = JsonLines(folder / "samples.jsonl") if config.num_sample_generations > 0 else None

    def log(self, *, update: int, episode: int, epoch: int | float, numbers: Numbers) -> None:
        """Record the metrics of an update or an evaluation."""
        self.record(self.metrics, [metrics_record(update=update, episode=episode, epoch=epoch, numbers=numbers)])
        self.latest = {**self.latest, **numbers}
        self._first = {**numbers, **self._first}

    def record(self, file: JsonLines | None, records: Sequence[Record]) -> None:
        """Append to a file. One that cannot be written, or is full, ends there and is told of; the run goes on."""
        if file is None or file.path in self._ended:
            return
        try:
            file.write(records)
        except TrainingError as error:
            self._end_file(file, f"{error}: it ends here, and the run goes on without it")
        if file is self.rollouts and self._largest_bytes is not None and file.size_bytes >= self._largest_bytes:
            self._end_file(file, f"{file.path.name} has reached rollouts_max_mib and ends here")

    def _end_file(self, file: JsonLines, why: str) -> None:
        self._ended.add(file.path)
        self.screen.note(why)

    def end(self) -> None:
        """Close everything; show the first and last logged numbers and where things lie."""
        self.close()
        places = [(file.path.stem, file.path) for file in self._files]
        if self.models is not None:
            places.insert(0, ("models", self.models))
        tensorboard = self.metrics.path.with_name("runs")
        if tensorboard.is_dir():
            places.append(("tensorboard", tensorboard))
        self.screen.end(places, self._first, self.latest)

    def close(self) -> None:
        """Close the files and give the terminal back; closing twice is fine."""
        for file in self._files:
            file.close()
        self.screen.close()

    @property
    def _files(self) -> list[JsonLines]:
        return [file for file in (self.metrics, self.rollouts, self.samples) if file is not None]
