"""What is seen of the training while it goes on: a line per log on the screen, a line in metrics.jsonl."""

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import TrainerCallback

from nearstep.metrics import Metrics
from nearstep.reports.records import JsonLines, set_aside
from nearstep.reward_modeling.objective import LearningModel
from nearstep.scale.backend import Backend

HEADLINE = ("loss", "accuracy", "margin", "mean_reward", "eval_loss", "eval_accuracy")
NOT_SHOWN = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "total_flos")


class Progress:
    """A context manager: leaving it closes the file. Prints and writes on the main process alone."""

    def __init__(self, folder: Path, backend: Backend, console: Console | None = None) -> None:
        self._folder = folder
        self._backend = backend
        self._console = (console or Console(highlight=False)) if backend.rank == 0 else None
        self._file: JsonLines | None = None

    def say(self, text: object) -> None:
        """Print text, or a table."""
        if self._console is not None:
            self._console.print(Text(text) if isinstance(text, str) else text, soft_wrap=isinstance(text, str))

    def merged(self, metrics: Metrics) -> dict[str, float]:
        """What all processes watched, as numbers."""
        shown = sum(self._backend.gather(metrics), start=Metrics()).numbers()
        if "min_reward" in shown:
            shown["min_reward"] = -shown["min_reward"]
        return shown

    def log(self, step: int, steps: int, epoch: float, logged: dict[str, float]) -> None:
        """Print the headline of a log and record all of it."""
        if self._console is None:
            return
        kept = {name: number for name, number in logged.items() if name not in NOT_SHOWN}
        headline = [f"{name} {kept[name]:.4g}" for name in HEADLINE if name in kept]
        if headline:
            self.say("  ".join([f"step {step}/{steps}", *headline]))
        assert self._file is not None
        finite = {name: number if math.isfinite(number) else None for name, number in kept.items()}
        self._file.write([{"step": step, **finite, "epoch": epoch}])

    def __enter__(self) -> "Progress":
        if self._console is not None:
            path = self._folder / "metrics.jsonl"
            if (kept := set_aside(path)) is not None:
                self.say(f"{path.name} of an earlier run is kept as {kept.name}")
            self._file = JsonLines(path)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()


class WatchedNumbers(TrainerCallback):  # type: ignore[misc]
    """Puts what the learner watched into every log of the trainer, before trackers and others see it."""

    def __init__(self, progress: Progress, learner: LearningModel) -> None:
        self._progress = progress
        self._learner = learner

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **others: Any) -> None:
        """Add the numbers of the steps since the last log, then show and record."""
        if "loss" in logs:
            logs |= self._progress.merged(self._learner.take_metrics())
        self._progress.log(state.global_step, state.max_steps, state.epoch, logs)
