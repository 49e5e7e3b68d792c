"""An exception of one process ends all of them, and its cause is what a person reads last."""

import json
import os
import subprocess
import sys
import time

import pytest

from nearstep.common.telling import tell_launcher
from tests.tiny import byte_tokenizer, tiny_causal_lm

REWARD = """
import os
def fails_on_one(completions, trainer_state, **columns):
    if os.environ["RANK"] == "1" and trainer_state.global_step == 1:
        raise KeyError("no such price")
    return [float(len(text)) for text in completions]
"""


def test_the_cause_comes_before_its_consequence(tmp_path, monkeypatch):
    for name, error in (("cause", None), ("lost", RuntimeError("[gloo] Connection closed by peer"))):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / name))
        tell_launcher(name, error)
    cause, lost = (json.loads((tmp_path / name).read_text()) for name in ("cause", "lost"))
    assert cause["message"] == "nearstep: cause"
    assert lost["timestamp"] > cause["timestamp"] + 30


def test_nothing_is_written_without_a_launcher(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    tell_launcher("cause")


@pytest.mark.slow
def test_an_exception_on_one_rank_ends_both_with_its_cause_r16(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in "abcdefgh"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "nearstep", "ppo",
        "--model_name_or_path", str(tmp_path / "policy"), "--dataset_name", str(tmp_path / "prompts.jsonl"),
        "--reward_funcs", f"{tmp_path / 'reward.py'}:fails_on_one", "--output_dir", str(tmp_path / "out"),
        "--total_episodes", "32", "--batch_size", "8", "--response_length", "4", "--use_cpu", "true",
    ]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert time.monotonic() - began < 120
    last = done.stderr[-2500:]
    assert "no such price" in last, done.stderr
    assert "reward.py" in last
