"""How users' `TrainerCallback` objects and trackers run beside our loop: through transformers' callback handler.

The handler, its state and its control flags are used as they are, without a `Trainer`: what is written for
transformers works unchanged. An update (one rollout and its optimizer steps) is what transformers calls a step.
"""

import dataclasses
import difflib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from nearstep.common.errors import ConfigError, shorten
from nearstep.config.ppo import PPOConfig
from nearstep.reports.arguments import arguments_view
from nearstep.reports.best import BestMetric, best_metric
from nearstep.reports.metrics import Numbers

EXTRAS = ("tensorboard", "wandb", "trackio")
NEVER_CALLED = (
    "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_prediction_step", "on_predict",
)  # fmt: skip


class Callbacks:
    """Drives the callbacks of one process and holds what they asked for.

    Users' callbacks run on every process, with `state.is_world_process_zero` true on rank 0 alone; trackers exist
    there alone. Raises ConfigError for a tracker that is unknown or not installed, and for what is no callback.
    """

    def __init__(
        self,
        config: PPOConfig,
        callbacks: Sequence[object] = (),
        *,
        model: nn.Module,
        processing_class: object,
        total_updates: int,
        optimizer: object = None,
        lr_scheduler: object = None,
        has_eval: bool = False,
        best: BestMetric | None = None,
        rank: int = 0,
        local_rank: int = 0,
        world_size: int = 1,
    ) -> None:
        from transformers.trainer_callback import (
            CallbackHandler,
            DefaultFlowCallback,
            ExportableState,
            TrainerControl,
            TrainerState,
        )

        check_callbacks(callbacks)
        self._own = tuple(callbacks)
        _warn_of_events(callbacks)
        self.trackers = tracker_callbacks(config.report_to, main=rank == 0)
        self._best = best or best_metric(config, has_eval=has_eval)
        self._told_of_absence = config.metric_for_best_model is None
        self._arguments = arguments_view(config, self._best, has_eval=has_eval, world_size=world_size, rank=rank)
        self._handler = CallbackHandler(
            [DefaultFlowCallback, *self.trackers, *early_stopping(config), *callbacks],
            model, processing_class, optimizer, lr_scheduler,
        )  # fmt: skip
        self._control = TrainerControl()
        self._state = TrainerState(
            max_steps=total_updates,
            logging_steps=config.logging_steps,
            eval_steps=config.eval_steps or total_updates,
            save_steps=config.save_steps or total_updates,
            num_train_epochs=math.ceil(config.num_train_epochs),
            train_batch_size=config.per_device_train_batch_size,
            is_local_process_zero=local_rank == 0,
            is_world_process_zero=rank == 0,
            stateful_callbacks=[
                each for each in [*self._handler.callbacks, self._control] if isinstance(each, ExportableState)
            ],
        )
        self._control = self._handler.on_init_end(self._arguments, self._state, self._control)

    @property
    def state(self) -> Any:
        """The `TrainerState` that callbacks see; reward functions get it as `trainer_state`."""
        return self._state

    @property
    def should_training_stop(self) -> bool:
        """Whether the run ends after this update; true after the last one."""
        return bool(self._control.should_training_stop)

    @property
    def should_save(self) -> bool:
        """Whether this update is saved: because of save_steps, or because a callback asked."""
        return bool(self._control.should_save)

    @property
    def should_evaluate(self) -> bool:
        """Whether to evaluate now: because of eval_steps, at the end, or because a callback asked."""
        return bool(self._control.should_evaluate)

    @property
    def should_log(self) -> bool:
        """Whether to log this update: because of logging_steps, at the end, or because a callback asked."""
        return bool(self._control.should_log)

    def begin(self) -> None:
        """The run begins; trackers open their runs here."""
        self._control = self._handler.on_train_begin(*self._place)
        self._control = self._handler.on_epoch_begin(*self._place)

    def step_begin(self) -> None:
        """An update begins; what callbacks asked for at the last one is forgotten."""
        self._control = self._handler.on_step_begin(*self._place)

    def step_end(self, *, update: int, epoch: int | float) -> None:
        """Update number `update` (from 1) is done, `epoch` passes over the prompts are behind us."""
        is_new_epoch = math.floor(epoch) > math.floor(self._state.epoch)
        self._state.global_step, self._state.epoch = update, epoch
        self._control = self._handler.on_step_end(*self._place)
        self._control.should_log |= self.should_training_stop
        if is_new_epoch:
            self._control = self._handler.on_epoch_end(*self._place)
            if update < self._state.max_steps:
                self._control = self._handler.on_epoch_begin(*self._place)

    def log(self, numbers: Numbers) -> None:
        """Hand the metrics to all callbacks and add them to the history in the state."""
        logs = {**numbers, "epoch": self._state.epoch}
        self._state.log_history.append({**logs, "step": self._state.global_step})
        self._control = self._handler.on_log(*self._place, logs)

    def evaluate(self, numbers: Numbers) -> bool:
        """Hand the metrics of an evaluation to all callbacks, as `eval_…` (trackers show `eval/…`).

        Returns whether it is the best so far, by the metric that the best is chosen by.
        """
        evaluated = {f"eval_{name}": number for name, number in numbers.items()}
        self.log(evaluated)
        self._control = self._handler.on_evaluate(*self._place, evaluated)
        # Early stopping has compared with the best evaluation before this one; only now is the record set.
        return not self._best.of_training and self._is_best(numbers)

    def is_best_update(self, numbers: Numbers) -> bool:
        """Whether an update is the best so far, where the best is chosen by a metric of training."""
        return self._best.of_training and self._is_best(numbers)

    def _is_best(self, numbers: Numbers) -> bool:
        value, record = numbers.get(self._best.name), self._state.best_metric
        if value is None and not self._told_of_absence:
            self._told_of_absence = True
            warnings.warn(
                f"metric_for_best_model: there is no {self._best.name} among {', '.join(numbers)}", stacklevel=3
            )
        if value is None or not math.isfinite(value):
            return False
        best = record is None or (value > record if self._best.greater else value < record)
        if best:
            self._state.best_metric, self._state.best_global_step = value, self._state.global_step
        return best

    def state_dict(self) -> dict[str, Any]:
        """The state that callbacks share, and that of each callback which exports its own."""
        self._state.stateful_callbacks = {
            type(each).__name__: each.state() for each in self._exporting() if each is not self._control
        }
        return {**dataclasses.asdict(self._state), "best_metric_of": self._best.name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; how long the run is and how often it logs stay as they are set now."""
        for name in ("global_step", "epoch", "log_history", "best_metric", "best_global_step"):
            setattr(self._state, name, state[name])
        if state.get("best_metric_of", self._best.name) != self._best.name:  # another metric's record is none
            self._state.best_metric = self._state.best_global_step = None
        for each in self._exporting():
            saved = state["stateful_callbacks"].get(type(each).__name__)
            if saved is not None:
                vars(each).update(vars(type(each).from_state(saved)))

    def _exporting(self) -> list[Any]:
        from transformers.trainer_callback import ExportableState

        return [each for each in self._handler.callbacks if isinstance(each, ExportableState)]

    @property
    def read_saved(self) -> bool:
        """Whether a user's callback is told of saved models, so that they must lie on the disk by then."""
        from transformers.trainer_callback import TrainerCallback

        kinds: list[type[TrainerCallback]] = [_kind(each) for each in self._own]
        return any(kind.on_save is not TrainerCallback.on_save for kind in kinds)

    def save(self) -> None:
        """A model was saved."""
        self._control = self._handler.on_save(*self._place)

    def end(self) -> None:
        """The run is over; trackers close their runs."""
        self._control = self._handler.on_train_end(*self._place)

    @property
    def _place(self) -> tuple[Any, Any, Any]:
        return self._arguments, self._state, self._control


def early_stopping(config: PPOConfig) -> list[Any]:
    """transformers' own callback where the settings ask for it; a record without a patience stops nothing."""
    if config.early_stopping_patience is None:
        return []
    from transformers.trainer_callback import EarlyStoppingCallback

    return [EarlyStoppingCallback(config.early_stopping_patience, config.early_stopping_threshold)]


def tracker_callbacks(report_to: Sequence[str], *, main: bool) -> list[Any]:
    """One callback for each tracker in `report_to` ("all": every one that is installed, "none": none).

    Names are checked on every process, trackers made on the main one. Raises ConfigError for all names that are unknown
    and all trackers that are not installed.
    """
    if not report_to or "none" in report_to:
        return []
    from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

    names = get_available_reporting_integrations() if "all" in report_to else dict.fromkeys(report_to)
    problems = [_unknown(name, INTEGRATION_TO_CALLBACK) for name in names if name not in INTEGRATION_TO_CALLBACK]
    trackers, cause = [], None
    for name in names:
        if main and name in INTEGRATION_TO_CALLBACK:
            try:
                trackers.append(INTEGRATION_TO_CALLBACK[name]())
            # What the integrations raise where their package is missing differs from one to the next.
            except (ImportError, RuntimeError, ValueError) as error:
                cause = error
                problems.append(f"report_to = {name} cannot start: {error}{_hint(name)}")
    if problems:
        raise ConfigError("\n".join(problems)) from cause
    return trackers


def _hint(name: str) -> str:
    return f' (pip install "nearstep[{name}]")' if name in EXTRAS else ""


def _unknown(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=1)
    nearest = f"did you mean {matches[0]}? " if matches else ""
    return f"report_to = {name} is no tracker: {nearest}Known are {', '.join(sorted(known))}"


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Raise ConfigError for what is no callback."""
    from transformers.trainer_callback import TrainerCallback

    for number, callback in enumerate(callbacks):
        if not issubclass(_kind(callback), TrainerCallback):
            raise ConfigError(
                f"callbacks[{number}] = {shorten(callback)} is no callback: derive its class from "
                "transformers.TrainerCallback"
            )


def _warn_of_events(callbacks: Sequence[object]) -> None:
    """A warning for a method that our loop never calls."""
    from transformers.trainer_callback import TrainerCallback

    for kind in map(_kind, callbacks):
        own = {name for each in kind.__mro__[: kind.__mro__.index(TrainerCallback)] for name in vars(each)}
        for name in NEVER_CALLED:
            if name in own:
                warnings.warn(f"{kind.__name__}.{name} is never called: PPO updates have no such event", stacklevel=3)


def _kind(callback: object) -> type:
    return callback if isinstance(callback, type) else type(callback)
