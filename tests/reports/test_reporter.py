"""The reporter writes what is due, on the main process alone, and always leaves files and terminal in order."""

import io
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import TrainerCallback

from nearstep.common.errors import TrainingError
from nearstep.config.ppo import PPOConfig
from nearstep.reports.console import Screen
from nearstep.reports.records import JsonLines
from nearstep.reports.reporter import Reporter
from nearstep.reports.run_report import sample_updates
from nearstep.training.evaluated import Sample
from tests.reports.helpers import make_callbacks, read_jsonl


@pytest.mark.parametrize(
    ("total", "asked", "expected"),
    [
        (10, 10, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}),
        (10, 3, {4, 7, 10}),
        (10, 1, {10}),
        (10, 0, set()),
        (3, 10, {1, 2, 3}),
        (1, 10, {1}),
        (7, 2, {4, 7}),
        (100, 4, {25, 50, 75, 100}),
    ],
)
def test_sample_updates_by_hand(total, asked, expected):
    assert sample_updates(total, asked) == expected


@given(st.integers(1, 500), st.integers(0, 500))
def test_sample_updates_never_more_than_asked_last_one_in_evenly_spread_d26(total, asked):
    chosen = sorted(sample_updates(total, asked))
    assert len(chosen) == min(total, asked)
    assert set(chosen) <= set(range(1, total + 1))
    if chosen:
        assert chosen[-1] == total
        gaps = [after - before for before, after in zip([0, *chosen], chosen, strict=False)]
        assert max(gaps) - min(gaps) <= 1


class LogKeeper(TrainerCallback):
    """Remembers what was logged."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(logs)


class Run:
    """A reporter with a screen that can be read."""

    def __init__(self, tmp_path, *callbacks, main=True, total_updates=3, **settings):
        self.folder = tmp_path / "out"
        config = PPOConfig(output_dir=str(self.folder), **settings)
        self.text = io.StringIO()
        screen = Screen(total_updates, Console(file=self.text, width=120, _environ={}))
        driven = make_callbacks(config, *callbacks, total_updates=total_updates, rank=0 if main else 1)
        self.reporter = Reporter(config, driven, total_updates=total_updates, main=main, screen=screen)

    def step(self, update, **numbers):
        self.reporter.step_begin()
        self.reporter.step(
            update=update,
            episode=8 * update,
            epoch=update / 4,
            records=[{"update": update, "episode": 8 * update - 1, "completion": "a [bold]"}],
            numbers={"objective/rlhf_reward": 0.5 * update, **numbers},
            tokens=[{"update": update, "tokens": ["a", "b"]}],
            profiles=[{"update": update, "masked": []}],
        )


def test_a_whole_run(tmp_path):
    run = Run(tmp_path)
    with run.reporter as reporter:
        reporter.begin([("batch_size", 8, "as given")], "the model sees this")
        run.step(1)
        run.step(2, **{"loss/policy_avg": nan})
        reporter.samples(2, [Sample("query", "response", 0.25, "before", None)])
        reporter.evaluation(update=2, episode=16, epoch=0.5, numbers={"objective/scores": 0.75})
        reporter.saved(2, run.folder / "checkpoint-2")
        run.step(3)
        reporter.saved(3, run.folder)
        reporter.end()
    assert read_jsonl(run.folder / "metrics.jsonl") == [
        {"update": 1, "episode": 8, "epoch": 0.25, "objective/rlhf_reward": 0.5, "health/level": 0},
        {"update": 2, "episode": 16, "epoch": 0.5, "objective/rlhf_reward": 1.0, "loss/policy_avg": None,
         "health/level": 2, "not_finite": {"loss/policy_avg": "nan"}},
        {"update": 2, "episode": 16, "epoch": 0.5, "eval/objective/scores": 0.75},
        {"update": 3, "episode": 24, "epoch": 0.75, "objective/rlhf_reward": 1.5, "health/level": 2},
    ]  # fmt: skip
    (alert,) = read_jsonl(run.folder / "alerts.jsonl")
    assert (alert["update"], alert["level"], alert["rule"]) == (2, "error", "broken_numbers")
    assert run.text.getvalue().count("error after update 2: Numbers are not finite") == 1
    assert [line["update"] for line in read_jsonl(run.folder / "rollouts.jsonl")] == [1, 2, 3]
    assert read_jsonl(run.folder / "samples.jsonl") == [
        {"update": 2, "query": "query", "response": "response", "score": 0.25, "start_response": "before",
         "start_score": None}
    ]  # fmt: skip
    shown = run.text.getvalue()
    for text in (
        "as given",
        "the model sees this",
        "evaluation after update 2  score 0.75",
        "checkpoint-2",
        "0.50 → 1.50",
    ):
        assert text in shown
    assert reporter.latest["objective/rlhf_reward"] == 1.5
    assert reporter.latest["eval/objective/scores"] == 0.75


def test_the_summary_says_where_tensorboard_lies(tmp_path):
    run = Run(tmp_path, report_to=("tensorboard",))
    with run.reporter as reporter:
        reporter.begin([], "")
        run.step(1)
        reporter.end()
    assert any("tensorboard" in line and "runs" in line for line in run.text.getvalue().splitlines())


def test_metrics_are_written_when_due_rollouts_always_d16(tmp_path):
    keeper = LogKeeper()
    run = Run(tmp_path, keeper, logging_steps=2)
    run.reporter.begin([], "")
    for update in (1, 2, 3):
        run.step(update)
    assert [line["update"] for line in read_jsonl(run.folder / "metrics.jsonl")] == [2, 3]  # 3 is the last
    assert [logs["episode"] for logs in keeper.logs] == [16, 24]
    assert [line["update"] for line in read_jsonl(run.folder / "rollouts.jsonl")] == [1, 2, 3]


def test_records_that_are_not_wanted_are_not_made(tmp_path):
    run = Run(tmp_path, log_rollouts=False, num_sample_generations=0, record_token_rows=0)
    with run.reporter as reporter:
        reporter.begin([], "")
        run.step(1)
        reporter.samples(1, [Sample("query", "response", 0.0)])
    assert {path.name for path in run.folder.iterdir()} == {"metrics.jsonl", "profiles.jsonl", "unfinished.json"}


def test_a_file_that_cannot_be_written_ends_and_the_run_goes_on(tmp_path, monkeypatch):
    run = Run(tmp_path)
    write = JsonLines.write

    def failing(file, records):
        if file.path.name == "rollouts.jsonl":
            raise TrainingError("rollouts.jsonl cannot be written: no space left")
        write(file, records)

    monkeypatch.setattr(JsonLines, "write", failing)
    with run.reporter as reporter:
        reporter.begin([], "")
        for update in (1, 2, 3):
            run.step(update)
        reporter.end()
    assert len(read_jsonl(run.folder / "metrics.jsonl")) == 3
    assert not (run.folder / "rollouts.jsonl").exists()
    assert (
        " ".join(run.text.getvalue().split()).count("no space left: it ends here, and the run goes on without it") == 1
    )


def test_rollouts_end_at_their_limit(tmp_path):
    run = Run(tmp_path, rollouts_max_mib=1e-5)  # 10.5 bytes
    with run.reporter as reporter:
        reporter.begin([], "")
        for update in (1, 2, 3):
            run.step(update)
        reporter.end()
    assert [record["update"] for record in read_jsonl(run.folder / "rollouts.jsonl")] == [1]
    assert [record["update"] for record in read_jsonl(run.folder / "tokens.jsonl")] == [1]
    assert [record["update"] for record in read_jsonl(run.folder / "profiles.jsonl")] == [1, 2, 3]
    assert " ".join(run.text.getvalue().split()).count("rollouts.jsonl has reached rollouts_max_mib and ends here") == 1


def test_nothing_is_written_before_the_run_begins(tmp_path):
    with Run(tmp_path).reporter:
        assert not (tmp_path / "out").exists()


def test_other_processes_write_nothing_and_run_callbacks(tmp_path):
    keeper = LogKeeper()
    run = Run(tmp_path, keeper, main=False)
    with run.reporter as reporter:
        reporter.begin([("a", 1, "b")], "preview")
        run.step(1)
        reporter.samples(1, [Sample("query", "response", 0.0)])
        reporter.evaluation(update=1, episode=8, epoch=0.1, numbers={"objective/scores": 1.0})
        reporter.saved(1, run.folder)
        reporter.end()
    assert not run.folder.exists()
    assert run.text.getvalue() == ""
    assert len(keeper.logs) == 2
    assert reporter.latest == {}


def test_a_callback_that_stops_the_run_is_seen(tmp_path):
    class Stopping(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2
            return control

    run = Run(tmp_path, Stopping(), total_updates=5)
    run.reporter.begin([], "")
    run.step(1)
    assert not run.reporter.should_training_stop
    run.step(2)
    assert run.reporter.should_training_stop


def test_what_is_due_is_passed_on(tmp_path):
    run = Run(tmp_path, save_steps=2, total_updates=5)
    run.reporter.begin([], "")
    run.step(1)
    assert (run.reporter.should_save, run.reporter.should_evaluate) == (False, False)
    run.step(2)
    assert (run.reporter.should_save, run.reporter.should_evaluate) == (True, False)


def test_on_log_gets_the_numbers_and_the_episode(tmp_path):
    keeper = LogKeeper()
    run = Run(tmp_path, keeper)
    run.reporter.begin([], "")
    run.step(1)
    assert keeper.logs == [{"episode": 8, "objective/rlhf_reward": 0.5, "health/level": 0, "epoch": 0.25}]


def test_a_run_that_fails_leaves_the_terminal_and_whole_files(tmp_path):
    text = io.StringIO()
    config = PPOConfig(output_dir=str(tmp_path))
    screen = Screen(3, Console(file=text, force_terminal=True, _environ={}))
    reporter = Reporter(config, make_callbacks(config), total_updates=3, main=True, screen=screen)

    def interrupted_run():
        with reporter:
            reporter.begin([], "")
            reporter.step(update=1, episode=8, epoch=0.1, records=[], numbers={"lr": 0.1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h") == 1
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1


def test_a_run_into_the_same_folder_keeps_the_records_of_the_first(tmp_path):
    for number in range(2):
        run = Run(tmp_path)
        with run.reporter as reporter:
            reporter.begin([], "")
            run.step(1 + number)
    assert [line["update"] for line in read_jsonl(run.folder / "metrics.jsonl")] == [2]
    assert [line["update"] for line in read_jsonl(run.folder / "metrics.1.jsonl")] == [1]
    assert "metrics.jsonl of an earlier run is kept as metrics.1.jsonl" in run.text.getvalue()
