"""Callbacks and trackers of transformers run beside our loop, see what it does and can steer it."""

import warnings

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK
from transformers.trainer_callback import PrinterCallback

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.reports.callbacks import Callbacks, tracker_callbacks
from tests.reports.helpers import make_callbacks

EVENTS = (
    "on_init_end", "on_train_begin", "on_epoch_begin", "on_step_begin", "on_step_end", "on_log", "on_evaluate",
    "on_save", "on_epoch_end", "on_push_begin", "on_train_end",
)  # fmt: skip


class Recorder(TrainerCallback):
    """Remembers every event with the step and epoch at which it came."""

    def __init__(self):
        self.events = []
        self.logs = []
        self.evaluations = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.events.append(("log", state.global_step, state.epoch))
        self.logs.append(logs)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.events.append(("evaluate", state.global_step, state.epoch))
        self.evaluations.append(metrics)


def _remember(name):
    def event(self, args, state, control, **kwargs):
        self.events.append((name, state.global_step, state.epoch))

    return event


for _name in set(EVENTS) - {"on_log", "on_evaluate"}:
    setattr(Recorder, _name, _remember(_name.removeprefix("on_")))


class Asking(TrainerCallback):
    """Asks for things after given updates."""

    def __init__(self, **asked: int):
        self.asked = asked

    def on_step_end(self, args, state, control, **kwargs):
        for switch, update in self.asked.items():
            if state.global_step == update:
                setattr(control, switch, True)
        return control


def run(callbacks: Callbacks, updates: int = 4) -> list[str]:
    """Go through a run as the loop does; returns the letters of what was asked after each update."""
    asked = []
    callbacks.begin()
    for update in range(1, updates + 1):
        callbacks.step_begin()
        callbacks.step_end(update=update, epoch=update / 2)
        letters = ""
        if callbacks.should_log:
            letters += "l"
            callbacks.log({"objective/scores": float(update)})
        if callbacks.should_evaluate:
            letters += "e"
            callbacks.evaluate({"objective/scores": float(update)})
        if callbacks.should_save:
            letters += "s"
            callbacks.save()
        asked.append(letters)
        if callbacks.should_training_stop:
            break
    callbacks.end()
    return asked


def test_events_come_in_order_with_the_number_of_the_update():
    recorder = Recorder()
    callbacks = make_callbacks(PPOConfig(logging_steps=2, save_steps=2, eval_steps=2), recorder, has_eval=True)
    assert run(callbacks) == ["", "les", "", "les"]
    second = [("log", 2, 1.0), ("log", 2, 1.0), ("evaluate", 2, 1.0), ("save", 2, 1.0)]  # evaluations are logged too
    fourth = [("log", 4, 2.0), ("log", 4, 2.0), ("evaluate", 4, 2.0), ("save", 4, 2.0)]
    assert recorder.events == [
        ("init_end", 0, 0), ("train_begin", 0, 0), ("epoch_begin", 0, 0),
        ("step_begin", 0, 0), ("step_end", 1, 0.5),
        ("step_begin", 1, 0.5), ("step_end", 2, 1.0), ("epoch_end", 2, 1.0), ("epoch_begin", 2, 1.0), *second,
        ("step_begin", 2, 1.0), ("step_end", 3, 1.5),
        ("step_begin", 3, 1.5), ("step_end", 4, 2.0), ("epoch_end", 4, 2.0), *fourth,
        ("train_end", 4, 2.0),
    ]  # fmt: skip


def test_nothing_is_due_but_logging_where_no_steps_are_given():
    assert run(make_callbacks(PPOConfig())) == ["l", "l", "l", "l"]


def test_logging_steps_is_honoured_and_the_last_update_always_logged_d16():
    assert run(make_callbacks(PPOConfig(logging_steps=3))) == ["", "", "l", "l"]


def test_without_eval_steps_the_end_is_evaluated_d16():
    assert run(make_callbacks(PPOConfig(), has_eval=True)) == ["l", "l", "l", "le"]


def test_a_callback_can_ask_for_everything():
    config = PPOConfig(logging_steps=100)
    asking = Asking(should_log=1, should_save=2, should_evaluate=2, should_training_stop=3)
    assert run(make_callbacks(config, asking)) == ["l", "es", "l"]  # stopped, and what was done last is logged


def test_what_was_asked_is_forgotten_at_the_next_update():
    callbacks = make_callbacks(PPOConfig(logging_steps=100), Asking(should_save=1, should_evaluate=1, should_log=1))
    callbacks.begin()
    callbacks.step_begin()
    callbacks.step_end(update=1, epoch=0.1)
    assert (callbacks.should_save, callbacks.should_evaluate, callbacks.should_log) == (True, True, True)
    callbacks.step_begin()
    assert (callbacks.should_save, callbacks.should_evaluate, callbacks.should_log) == (False, False, False)


def test_on_log_gets_the_numbers_and_history_keeps_them_whatever_a_callback_does():
    class Greedy(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            logs.clear()

    recorder = Recorder()
    callbacks = make_callbacks(PPOConfig(), recorder, Greedy())
    numbers = {"objective/scores": 2.0, "lr": 0.1}
    recorder.on_log = lambda args, state, control, logs=None, **kwargs: recorder.logs.append(dict(logs))
    callbacks.begin()
    callbacks.step_end(update=1, epoch=0.25)
    callbacks.log(numbers)
    assert recorder.logs == [{"objective/scores": 2.0, "lr": 0.1, "epoch": 0.25}]
    assert callbacks.state.log_history == [{"objective/scores": 2.0, "lr": 0.1, "epoch": 0.25, "step": 1}]
    assert numbers == {"objective/scores": 2.0, "lr": 0.1}


def test_evaluations_are_named_as_transformers_names_them():
    recorder = Recorder()
    callbacks = make_callbacks(PPOConfig(), recorder)
    callbacks.evaluate({"objective/scores": 2.0})
    assert recorder.evaluations == [{"eval_objective/scores": 2.0}]


def test_state_of_the_run():
    config = PPOConfig(logging_steps=3, num_train_epochs=2.5, per_device_train_batch_size=16)
    state = make_callbacks(config, total_updates=7).state
    assert (state.max_steps, state.logging_steps, state.num_train_epochs, state.train_batch_size) == (7, 3, 3, 16)
    assert state.is_world_process_zero
    assert state.is_local_process_zero


def test_early_stopping_of_transformers_works():
    scores = [1.0, 2.0, 1.5, 1.9, 5.0]
    callbacks = make_callbacks(
        PPOConfig(eval_steps=1), EarlyStoppingCallback(early_stopping_patience=2), total_updates=5, has_eval=True
    )
    callbacks.begin()
    for update, score in enumerate(scores, start=1):
        callbacks.step_begin()
        callbacks.step_end(update=update, epoch=0.1)
        callbacks.evaluate({"objective/scores": score})
        if callbacks.should_training_stop:
            break
    assert update == 4  # 1.5 and 1.9 are no better than 2.0
    assert (callbacks.state.best_metric, callbacks.state.best_global_step) == (2.0, 2)


def test_callbacks_may_be_classes_and_the_printer_does_not_break_anything(capsys):
    run(make_callbacks(PPOConfig(), PrinterCallback), updates=1)
    assert "objective/scores" in capsys.readouterr().out


def test_on_other_processes_users_callbacks_run_and_trackers_do_not(tmp_path):
    recorder = Recorder()
    config = PPOConfig(output_dir=str(tmp_path), report_to=("tensorboard",))
    callbacks = make_callbacks(config, recorder, rank=1, local_rank=1, world_size=2)
    run(callbacks)
    assert not callbacks.state.is_world_process_zero
    assert len(recorder.logs) == 4
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_files_hold_the_numbers(tmp_path):
    callbacks = make_callbacks(PPOConfig(output_dir=str(tmp_path), report_to=("tensorboard",)))
    callbacks.begin()
    for update in (1, 2):
        callbacks.step_begin()
        callbacks.step_end(update=update, epoch=0.5 * update)
        callbacks.log({"objective/rlhf_reward": 1.5 * update, "optimizer/steps": 4 * update})
    callbacks.evaluate({"objective/scores": 0.75})
    callbacks.end()
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    rewards = [(event.step, event.value) for event in events.Scalars("train/objective/rlhf_reward")]
    assert rewards == [(1, 1.5), (2, 3.0)]
    assert [event.value for event in events.Scalars("train/optimizer/steps")] == [4.0, 8.0]
    assert [(event.step, event.value) for event in events.Scalars("eval/objective/scores")] == [(2, 0.75)]
    settings = events.Tensors("args/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"kl_coef": 0.05' in settings


def test_an_unknown_tracker_is_refused_with_the_nearest_name():
    with pytest.raises(
        ConfigError, match=r"report_to = tensorbord is no tracker: did you mean tensorboard\? Known are"
    ):
        make_callbacks(PPOConfig(report_to=("tensorbord",)))


def test_an_unknown_tracker_is_refused_on_every_process():
    with pytest.raises(ConfigError, match="wandbb"):
        make_callbacks(PPOConfig(report_to=("wandbb",)), rank=1)


@pytest.fixture
def nothing_installed(monkeypatch):
    """The integrations as they behave where their packages are missing."""

    def refusing(error):
        def make():
            raise error

        return make

    missing = {
        "wandb": refusing(RuntimeError("WandbCallback requires wandb to be installed.")),
        "trackio": refusing(ImportError("No module named 'trackio'")),
        "neptune": refusing(ValueError("NeptuneCallback requires the Neptune client.")),
    }
    for name, make in missing.items():
        monkeypatch.setitem(INTEGRATION_TO_CALLBACK, name, make)


@pytest.mark.usefixtures("nothing_installed")
def test_trackers_that_are_not_installed_are_all_named_with_their_extra():
    with pytest.raises(ConfigError) as caught:
        make_callbacks(PPOConfig(report_to=("wandb", "trackio", "neptune", "wundb")))
    told = str(caught.value)
    assert (
        'report_to = wandb cannot start: WandbCallback requires wandb to be installed. (pip install "nearstep[wandb]")'
        in told
    )
    assert 'pip install "nearstep[trackio]"' in told
    assert "report_to = neptune cannot start: NeptuneCallback requires the Neptune client." in told
    assert "report_to = wundb is no tracker: did you mean wandb?" in told


@pytest.mark.usefixtures("nothing_installed")
def test_trackers_are_made_on_the_main_process_alone():
    make_callbacks(PPOConfig(report_to=("wandb",)), rank=1)  # on rank 0 this is refused, see above


def test_all_means_what_is_installed():
    kinds = {type(tracker).__name__ for tracker in tracker_callbacks(("all",), main=True)}
    assert "TensorBoardCallback" in kinds


def test_none_means_none():
    assert tracker_callbacks(("none",), main=True) == []


def test_a_tracker_named_twice_is_made_once():
    assert len(tracker_callbacks(("tensorboard", "tensorboard"), main=True)) == 1


@pytest.mark.parametrize("callback", [print, object(), int, "tensorboard"])
def test_what_is_no_callback_is_refused_with_its_place(callback):
    with pytest.raises(ConfigError, match=r"callbacks\[1\] = .* is no callback"):
        make_callbacks(PPOConfig(), Recorder(), callback)


def test_a_method_that_is_never_called_is_told():
    class Base(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            """Wants to see every optimizer step."""

    class Derived(Base):
        pass

    with pytest.warns(UserWarning, match=r"Derived\.on_optimizer_step is never called"):
        make_callbacks(PPOConfig(), Derived())


def test_a_usual_callback_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_callbacks(PPOConfig(), Recorder())
