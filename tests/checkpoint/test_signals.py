"""A signal costs nothing: the run saves after the update, leaves with the signal's exit code, and goes on."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
from transformers import TrainerCallback

from nearstep.checkpoint.seal import checkpoints
from tests.checkpoint.saved_runs import assert_same_bits, everything, records, trainer_of


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


@pytest.mark.parametrize("moment", ["begin", "end"])
@pytest.mark.parametrize(("number", "left"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_saves_within_the_update_and_the_run_goes_on(tmp_path, capfd, number, left, moment):
    unbroken = trainer_of(tmp_path / "unbroken", save_steps=None)
    unbroken.train()
    stopped = trainer_of(tmp_path / "stopped", save_steps=None, given={"callbacks": [Sends(number, moment)]})
    before = signal.getsignal(number)
    with pytest.raises(left) as ended:
        stopped.train()
    assert signal.getsignal(number) is before
    assert left is KeyboardInterrupt or ended.value.code == 143
    assert f"{number.name}: the run saves a checkpoint and ends after this update" in capfd.readouterr().err
    assert [path.name for path in checkpoints(tmp_path / "stopped")] == ["checkpoint-2"]
    assert not (tmp_path / "stopped" / "policy").exists()
    resumed = trainer_of(tmp_path / "stopped", save_steps=None, resume="auto")
    resumed.train()
    assert_same_bits(everything(resumed), everything(unbroken))
    assert records(tmp_path / "stopped") == records(tmp_path / "unbroken")


SCRIPT = """
import sys
from tests.checkpoint.saved_runs import everything, trainer_of
from safetensors.torch import save_file
trainer = trainer_of(sys.argv[1], total_episodes=8 * 40, save_steps=5, save_total_limit=2, resume="auto")
trainer.train()
save_file(everything(trainer), sys.argv[2])
"""


@pytest.mark.slow
def test_thirty_kills_at_random_moments_cost_nothing(tmp_path):
    from safetensors.torch import load_file

    seed = int(os.environ.get("NEARSTEP_KILL_SEED", time.time_ns() % 10**6))
    print(f"NEARSTEP_KILL_SEED={seed}")
    draws = random.Random(seed)
    unbroken = trainer_of(tmp_path / "unbroken", total_episodes=8 * 40, save_steps=5, save_total_limit=2)
    unbroken.train()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "killed"), str(tmp_path / "end.safetensors")]
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            # From the first moment of a start to well behind the next save: imports take a few seconds of it.
            process.wait(draws.uniform(3, 14) if kills < 30 else 600)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        else:
            assert process.returncode == 0, process.stderr.read()
            if kills >= 30 or (tmp_path / "end.safetensors").exists():
                break
    print(f"{kills} kills")
    assert_same_bits(load_file(tmp_path / "end.safetensors"), everything(unbroken))
    assert records(tmp_path / "killed") == records(tmp_path / "unbroken")
