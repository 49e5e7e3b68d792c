"""The folder of a run that is not over says what happened, when, and how to go on."""

import json
import os
import signal
import subprocess
import sys
from datetime import datetime

import pytest
from transformers import TrainerCallback

from nearstep import ConfigError, TrainingError
from nearstep.common.errors import LostProcessError
from nearstep.reports.unfinished import Unfinished
from tests.checkpoint.saved_runs import records, trainer_of
from tests.lanes import slow


def told(folder):
    """What the folder says; nothing where it says nothing."""
    path = folder / "unfinished.json"
    return json.loads(path.read_text()) if path.exists() else None


class Failing(TrainerCallback):
    """A callback that fails at one of its moments."""

    def __init__(self, moment, error):
        self.moment, self.error = moment, error

    def on_train_begin(self, *given, **named):
        self.fail("begin")

    def on_step_begin(self, *given, **named):
        self.fail("step")

    def on_save(self, *given, **named):
        self.fail("save")

    def fail(self, moment):
        if moment == self.moment:
            raise self.error


def raises(error):
    """A reward that fails."""

    def reward(completions, **columns):
        raise error

    return reward


def nothing_finite(completions, **columns):
    return [float("nan")] * len(completions)


SCORE, BEGIN = "update 1 (score)", "update 1 (begin)"


@pytest.mark.parametrize(("given", "where", "what"), [
    ({"reward_funcs": raises(KeyError("price"))}, SCORE, "RewardError: reward function 'reward' raised KeyError"),
    slow(({"reward_funcs": raises(SystemExit(0))}, SCORE, "RewardError: reward function 'reward' raised SystemExit")),
    slow(({"reward_funcs": nothing_finite}, SCORE, "RewardError: reward 'nothing_finite' returned nan")),
    slow(({"callbacks": [Failing("begin", OSError("no route"))]}, "before the first update", "OSError: no route")),
    ({"callbacks": [Failing("step", SystemExit(0))]}, BEGIN, f"TrainingError: {BEGIN}: something called sys.exit(0)"),
    slow(({"callbacks": [Failing("step", RuntimeError("out of memory"))]}, BEGIN, "RuntimeError: out of memory")),
    slow(({"callbacks": [Failing("step", KeyboardInterrupt())]}, BEGIN, "KeyboardInterrupt: ")),
    ({"callbacks": [Failing("save", ValueError("full"))]}, "update 1 (save)", "ValueError: full"),
])  # fmt: skip
def test_a_run_that_fails_in_its_first_update_says_so_in_its_folder(tmp_path, given, where, what):
    trainer = trainer_of(tmp_path, given=given)
    with pytest.raises(BaseException):  # noqa: B017, PT011 (which one is in the file)
        trainer.train()
    said = told(tmp_path)
    assert (said["what"][: len(what)], said["where"]) == (what, where)
    assert datetime.fromisoformat(said["when"]).tzinfo is not None
    assert "--resume auto" in said["go_on"]
    again = trainer_of(tmp_path, resume="auto", total_episodes=16)
    again.train()
    assert told(tmp_path) is None


def test_whoever_is_killed_has_said_that_it_runs(tmp_path):
    script = (
        "import sys\nfrom tests.checkpoint.saved_runs import trainer_of\nimport os\n"
        "def dies(completions, **columns):\n    os.kill(os.getpid(), 9)\n"
        "trainer_of(sys.argv[1], given={'reward_funcs': dies}).train()"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert "was killed without a word: process" in told(tmp_path)["what"]
    assert told(tmp_path)["where"] == "the last line of metrics.jsonl says how far it came"


def test_a_run_that_a_signal_has_stopped_says_so(tmp_path):
    class Sends(TrainerCallback):
        def on_step_begin(self, *given, **named):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        trainer_of(tmp_path, given={"callbacks": [Sends()]}).train()
    assert told(tmp_path)["what"] == "SystemExit: 143"


@pytest.mark.slow
def test_the_folder_of_another_run_is_left_alone(tmp_path):
    trainer_of(tmp_path, total_episodes=8).train()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="holds a run"):
        trainer_of(tmp_path, total_episodes=8).train()
    assert sorted(tmp_path.iterdir()) == before


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    said = []

    class BeginsAnother(TrainerCallback):
        def on_step_begin(self, *given, **named):
            with pytest.raises(ConfigError) as raised:
                trainer_of(tmp_path, total_episodes=8).train()
            said.append(str(raised.value))

    trainer_of(tmp_path, save_steps=None, total_episodes=16, given={"callbacks": [BeginsAnother()]}).train()
    assert [record["update"] for record in records(tmp_path)["metrics.jsonl"]] == [1, 2]
    assert len(said) == 2
    assert "another run is writing there now (It runs, or was killed" in said[0]
    trainer_of(tmp_path, save_steps=None, total_episodes=16).train()  # it has let go


def test_who_begins_late_does_not_write_over_the_cause_of_another_process(tmp_path):
    one, other = Unfinished(tmp_path, main=True), Unfinished(tmp_path, main=False)
    other.begin()
    other.leave(KeyError("price"))
    one.begin()
    assert told(tmp_path)["what"] == "KeyError: 'price'"
    one.leave(LostProcessError("rank 1 ended"))
    assert told(tmp_path)["what"] == "KeyError: 'price'"
    one.begin()  # a new try of the same run
    assert told(tmp_path)["what"].startswith("It runs")
    one.leave(TrainingError("no space"))
    Unfinished(tmp_path, main=True).begin()
    assert told(tmp_path)["what"].startswith("It runs")


def test_a_consequence_is_not_written_over_its_cause(tmp_path):
    one, other = Unfinished(tmp_path, main=True), Unfinished(tmp_path, main=False)
    one.begin()
    other.begin()
    other.leave(KeyError("price"))
    one.leave(LostProcessError("rank 1 ended"))
    assert told(tmp_path)["what"] == "KeyError: 'price'"
    one.begin()
    one.leave(LostProcessError("rank 1 ended"))
    other.begin()
    other.leave(TrainingError("no space"))
    assert told(tmp_path)["what"] == "TrainingError: no space"
