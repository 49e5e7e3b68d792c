"""A signal costs nothing: the run saves after the update, leaves with the signal's exit code, and goes on."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from nearstep.reports.run_folder import checkpoints
from nearstep.training.interruption import Interruption
from tests.checkpoint.saved_runs import ROWS, assert_same_bits, everything, records, trainer_of
from tests.lanes import slow


class Sends(TrainerCallback):
    """Sends this process a signal at the start or the end of an update."""

    def __init__(self, number, moment):
        self.number, self.moment = number, moment

    def on_step_begin(self, args, state, control, **kwargs):
        if self.moment == "begin" and state.global_step == 1:
            os.kill(os.getpid(), self.number)

    def on_log(self, args, state, control, **kwargs):
        if self.moment == "end" and state.global_step == 2:
            os.kill(os.getpid(), self.number)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What a run that nothing stops ends with, and its records."""
    folder = tmp_path_factory.mktemp("unbroken")
    trainer = trainer_of(folder, save_steps=None)
    trainer.train()
    return everything(trainer), records(folder)


@pytest.mark.parametrize(("number", "left", "moment"), [
    (signal.SIGTERM, SystemExit, "end"), slow((signal.SIGINT, KeyboardInterrupt, "begin")),
    pytest.param(signal.SIGTERM, SystemExit, "begin", marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, KeyboardInterrupt, "end", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_signal_saves_within_the_update_and_the_run_goes_on(tmp_path, capfd, unbroken, number, left, moment):
    stopped = trainer_of(tmp_path, save_steps=None, given={"callbacks": [Sends(number, moment)]})
    before = signal.getsignal(number)
    with pytest.raises(left) as ended:
        stopped.train()
    assert signal.getsignal(number) is before
    assert left is KeyboardInterrupt or ended.value.code == 143
    assert f"{number.name}: the run saves a checkpoint and ends after this update" in capfd.readouterr().err
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert not (tmp_path / "policy").exists()
    resumed = trainer_of(tmp_path, save_steps=None, resume="auto")
    resumed.train()
    expected, written = unbroken
    assert_same_bits(everything(resumed), expected)
    assert records(tmp_path) == written


class SendsWhileEvaluating(TrainerCallback):
    """Sends this process SIGTERM in its first evaluation."""

    def on_evaluate(self, args, state, control, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_during_an_evaluation_saves_the_update_before_it(tmp_path):
    parts = {"callbacks": [SendsWhileEvaluating()], "eval_dataset": ROWS[:2]}
    with pytest.raises(SystemExit):
        trainer_of(tmp_path, save_steps=None, eval_steps=2, given=parts).train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


@pytest.mark.slow
def test_a_signal_after_the_last_update_saves_it(tmp_path):
    """It comes while samples are written: nothing looks at signals after them."""
    changed = {"save_steps": None, "num_sample_generations": 1, "total_episodes": 16}
    stopped = trainer_of(tmp_path, **changed)
    write, evaluator = stopped.recipe.evaluator.samples, stopped.recipe.evaluator
    evaluator.samples = lambda engine, state: os.kill(os.getpid(), signal.SIGTERM) or write(engine, state)
    with pytest.raises(SystemExit):
        stopped.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]
    assert trainer_of(tmp_path, **changed, resume="auto").train().updates == 2
    assert (tmp_path / "policy").is_dir()


@pytest.mark.parametrize("launched", [True, False])
def test_a_signal_that_a_launcher_passes_on_is_no_second_one(monkeypatch, launched):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setattr(threading.Timer, "start", lambda timer: None)
    with Interruption() as interruption, nullcontext() if launched else pytest.raises(SystemExit):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
    assert interruption.asked


SCRIPT = """
import sys
from tests.checkpoint.saved_runs import everything, trainer_of
from safetensors.torch import save_file
trainer = trainer_of(sys.argv[1], total_episodes=8 * 40, save_steps=5, save_total_limit=2, resume="auto")
trainer.train()
save_file(everything(trainer), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thirty_kills_at_random_moments_cost_nothing(tmp_path):
    """Runs of 40 updates that save every 5, each begun again until it ends, until 30 processes have been killed."""
    seed = int(os.environ.get("NEARSTEP_KILL_SEED", time.time_ns() % 10**6))
    print(f"NEARSTEP_KILL_SEED={seed}")
    draws = random.Random(seed)
    unbroken = trainer_of(tmp_path / "unbroken", total_episodes=8 * 40, save_steps=5, save_total_limit=2)
    unbroken.train()
    kills, runs = 0, 0
    while kills < 30:
        runs += 1
        folder, end = tmp_path / f"killed-{runs}", tmp_path / f"end-{runs}.safetensors"
        while not end.exists():
            command = [sys.executable, "-c", SCRIPT, str(folder), str(end)]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                # A start takes some seconds of it: kills come while models load, in updates, and in saves.
                process.wait(draws.uniform(3, 16))
            except subprocess.TimeoutExpired:
                process.kill()
                kills += 1
            else:
                assert process.returncode == 0, process.stderr.read()
        assert_same_bits(load_file(end), everything(unbroken))
        assert records(folder) == records(tmp_path / "unbroken")
    print(f"{kills} kills, {runs} runs")
