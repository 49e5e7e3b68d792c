"""Whole runs with a generation process beside the trainer: they learn, tell of its end, leave none, and resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nearstep import PPOTrainer
from nearstep.common.errors import LostProcessError, TrainingError, WaitError
from tests.rewards.light import low_ids
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, learner, settings

ROOT = Path(__file__).parents[2]
ROWS = [{"prompt": text} for text in PROMPTS]
RUN = """
import sys
from nearstep import PPOTrainer
from tests.rewards.light import low_ids
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import settings
from tests.trainer.test_generation_process import ROWS
config = settings(sys.argv[1], max_staleness=2, total_episodes=8 * int(sys.argv[2]), save_steps=1, resume="auto")
PPOTrainer(config, byte_tokenizer(), tiny_causal_lm(), train_dataset=ROWS, reward_funcs=low_ids).train()
"""
BROKEN = """
from nearstep.rollout.transformers_engine import TransformersEngine

class Broken(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        raise ValueError("no answer today")
"""


def trainer_of(folder, *, model=None, callbacks=None, **changed):
    config = settings(folder, **{"max_staleness": 1, "staleness_chunk": 2, **changed})
    return PPOTrainer(
        config, byte_tokenizer(), model or tiny_causal_lm(), train_dataset=ROWS, reward_funcs=low_ids,
        callbacks=callbacks,
    )  # fmt: skip


def children():
    found = (Path(f"/proc/self/task/{os.getpid()}/children")).read_text().split()
    return [int(child) for child in found if "rollout.ahead" in Path(f"/proc/{child}/cmdline").read_text()]


def acting(action):
    """A callback that does something with the generation process after the second update."""
    from transformers import TrainerCallback

    class Acting(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                action(*children())

    return [Acting()]


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_trains_on_what_was_sampled_beside_it(tmp_path):
    """max_staleness, staleness_chunk: rows of earlier versions, none older than allowed; nothing is left behind."""
    trainer = trainer_of(tmp_path)
    before = trainer.model.lm_head.weight.detach().clone()
    trainer.train()
    ages = [entry["staleness/age_max"] for entry in metrics(tmp_path)]
    assert (len(ages), ages[0]) == (3, 0.0)
    assert max(ages) == 1.0
    assert not before.equal(trainer.model.lm_head.weight)
    assert children() == []
    assert [*tmp_path.glob(".generation-*")] == []
    # What the process has sampled from is what the trainer had then: no ratio is off before the first step of update 1.
    assert metrics(tmp_path)[0]["val/ratio_max_gap_first"] < 1e-5


@pytest.mark.slow
def test_the_end_of_the_process_is_told_within_seconds(tmp_path):
    killed = []

    def kill(process):
        os.kill(process, signal.SIGKILL)
        killed.append(time.monotonic())

    with pytest.raises(LostProcessError, match=r"the generation process \(max_staleness\) is gone: process \d+ ended"):
        trainer_of(tmp_path, total_episodes=800, callbacks=acting(kill)).train()
    assert time.monotonic() - killed[0] < 30
    assert children() == []


@pytest.mark.slow
def test_a_process_that_hangs_is_told_at_the_limit(tmp_path):
    stop = acting(lambda process: os.kill(process, signal.SIGSTOP))
    with pytest.raises(WaitError, match=r"without a sign of the generation process.*process \d+ is stopped"):
        trainer_of(tmp_path, total_episodes=800, callbacks=stop, wait_timeout_seconds=60).train()
    assert children() == []


@pytest.mark.slow
def test_an_error_in_the_process_is_told_with_its_words(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    with pytest.raises((TrainingError, LostProcessError), match=r"no answer today|generation process") as told:
        trainer_of(tmp_path, engine=f"{tmp_path}/broken.py:Broken", eval_on_start=False).train()
    assert "no answer today" in str(told.value) + str(told.value.__cause__)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_other_families_sample_from_the_weights_that_train(kind, tmp_path):
    trainer_of(tmp_path, model=tiny_causal_lm(kind), total_episodes=16, learning_rate=0.0).train()
    assert max(entry["val/ratio_max_gap_first"] for entry in metrics(tmp_path)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"use_peft": True}, {"dtype": "bfloat16"}, {"bf16": True}, {"critic_trunk": "shared"}]
)
def test_adapters_and_types_reach_the_process(options, tmp_path):
    folder = tmp_path / "policy"
    tiny_causal_lm().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    trainer_of(tmp_path / "run", model=str(folder), total_episodes=24, learning_rate=0.0, **options).train()
    coarse = options.get("dtype") == "bfloat16" or options.get("bf16")
    assert max(entry["val/ratio_max_gap_first"] for entry in metrics(tmp_path / "run")) < (0.3 if coarse else 1e-4)


@pytest.mark.slow
def test_it_learns_as_a_synchronous_run_does(tmp_path):
    given = {"total_episodes": 64 * 14, "per_device_train_batch_size": 64, "learning_rate": 1e-2, "kl_coef": 0.0}
    trainer_of(tmp_path, model=learner(), log_rollouts=False, **given).train()
    scores = [entry["objective/scores"] for entry in metrics(tmp_path)]
    assert scores[-1] > scores[0] + 0.2


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path):
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    run = subprocess.Popen([*command, "400"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 240
    while not (tmp_path / "checkpoint-4").is_dir() and time.monotonic() < until:
        time.sleep(0.2)
    (child,) = map(int, Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split())
    run.kill()
    run.wait()
    time.sleep(1)
    assert (
        not Path(f"/proc/{child}").exists()
        or Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    )
    done = subprocess.run([*command, "12"], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = metrics(tmp_path)
    assert [entry["update"] for entry in found] == list(range(1, 13))
    assert max(entry["staleness/age_max"] for entry in found) <= 2
    episodes = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len(episodes) == 96


@pytest.mark.slow
def test_a_fork_plays_every_prompt_once(tmp_path):
    """What its parent had under way, and then the prompts to come."""
    rows = [{"prompt": f"{number:03}"} for number in range(96)]
    given = {"max_staleness": 2, "staleness_window": 1.0, "save_steps": 1, "staleness_chunk": 1}

    def run(folder, **changed):
        config = settings(folder, **{**given, **changed})
        tiny = (byte_tokenizer(), tiny_causal_lm())
        PPOTrainer(config, *tiny, train_dataset=rows, reward_funcs=low_ids).train()
        lines = (folder / "rollouts.jsonl").read_text().splitlines()
        return [(entry["update"], entry["prompt"]) for entry in map(json.loads, lines)]

    parent = run(tmp_path / "parent", total_episodes=48)
    fork = run(tmp_path / "fork", total_episodes=80, fork_from=str(tmp_path / "parent" / "checkpoint-4"), kl_coef=0.5)
    played = [prompt for update, prompt in parent if update <= 4] + [prompt for _, prompt in fork]
    assert [update for update, _ in fork] == [update for update in range(5, 11) for _ in range(8)]
    assert len(played) == len(set(played)) == 80


SLOW = """
import time
from nearstep.rollout.transformers_engine import TransformersEngine

class Slow(TransformersEngine):
    def generate(self, prompts, settings, row_ended=None):
        if any(len(ids) == 1 for ids in prompts.ids) or max(settings.begun or (0,)) > 2:
            time.sleep(1.0)  # a chunk with the long row in it
        return super().generate(prompts, settings, row_ended)
"""


@pytest.mark.slow
def test_rows_that_are_too_old_are_left_out_and_counted(tmp_path):
    """on_stale = drop: one prompt leaves room for a long response, which the updates do not wait for."""
    (tmp_path / "slow.py").write_text(SLOW)
    rows = [{"prompt": "x"}, *({"prompt": f"y{number:028}"} for number in range(63))]
    config = settings(
        tmp_path / "run", max_staleness=1, staleness_window=1.0, staleness_chunk=1, on_stale="drop", max_length=31,
        response_length=30, total_episodes=40, shuffle_dataset=False, engine=f"{tmp_path}/slow.py:Slow",
    )  # fmt: skip
    PPOTrainer(config, byte_tokenizer(), tiny_causal_lm(), train_dataset=rows, reward_funcs=low_ids).train()
    found = metrics(tmp_path / "run")
    assert [entry["staleness/dropped"] for entry in found] == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert max(entry["staleness/age_max"] for entry in found) <= 1
    assert found[-1]["episode"] == 41  # one more than was trained on
    played = [json.loads(line)["prompt"] for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert (len(played), len(set(played)), "x" in played) == (40, 40, False)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"staleness_window": 1.0}, {"on_stale": "drop"}])
def test_the_other_settings_reach_the_rule(setting, tmp_path):
    """staleness_window, on_stale; what they do is shown in tests/rollout/ahead and tests/training/test_ahead.py."""
    rule = trainer_of(tmp_path, **setting).recipe.ahead.rule
    assert (rule.window_share, rule.drops) == (setting.get("staleness_window", 0.3), "on_stale" in setting)
