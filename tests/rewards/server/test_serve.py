"""`nearstep serve-reward` and `reward_url` together, as two processes: the scores are those of training alone."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from nearstep.cli.main import main
from tests.tiny import byte_tokenizer, tiny_causal_lm, tiny_scalar_model

TOKEN = "canary-token-4711"
REWARDS = """
def matches(completions, answer, **kwargs):
    return [sum(c in a for c in text) / 3 for text, a in zip(completions, answer, strict=True)]
"""


@pytest.fixture
def folder(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    tiny_scalar_model().save_pretrained(tmp_path / "scorer")
    byte_tokenizer().save_pretrained(tmp_path / "scorer")
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"prompt {row}", "answer": "abc"} for row in range(8)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@contextmanager
def serving(*words, **environment):
    """The server as a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "nearstep", "serve-reward", "--port", "0", "--use_cpu", *words],
        env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"at (http://\S+/score), ", line):
                yield found[1], process
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def train(folder, name, *words):
    assert main([
        "ppo", "--model_name_or_path", str(folder / "policy"), "--dataset_name", str(folder / "prompts.jsonl"),
        "--output_dir", str(folder / name), "--total_episodes", "16", "--batch_size", "8", "--response_length", "7",
        "--use_cpu", "--num_sample_generations", "0", "--learning_rate", "1e-3", "--value_model_path",
        str(folder / "scorer"), *words,
    ]) == 0  # fmt: skip
    return [json.loads(line) for line in (folder / name / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_training_against_a_server_is_training_with_its_rewards(folder, monkeypatch):
    function = f"{folder / 'rewards.py'}:matches"
    rewards = (
        "--reward_model_path",
        str(folder / "scorer"),
        "--reward_funcs",
        function,
        "--reward_weights",
        "0.3",
        "2",
    )
    here = train(folder, "here", *rewards)
    monkeypatch.setenv("REWARD_TOKEN", TOKEN)
    with serving(*rewards, "--token_env", "REWARD_TOKEN", REWARD_TOKEN=TOKEN) as (url, process):
        there = train(folder, "there", "--reward_url", url, "--reward_url_token_env", "REWARD_TOKEN")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    assert len(here) == 16
    for one, other in zip(here, there, strict=True):
        assert one["completion_ids"] == other["completion_ids"]  # so the updates were the same too
        assert one["total_score"] == other["total_score"]
        assert other["scores"] == {"reward_url": one["total_score"]}
    for file in (folder / "there").rglob("*"):
        assert file.is_dir() or TOKEN.encode() not in file.read_bytes(), file


def test_a_server_that_others_can_reach_needs_a_token(capsys):
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        assert main(["serve-reward", "--host", host, "--reward_funcs", "setup.py:f"]) == 2
        assert f"host = {host} can be reached from elsewhere" in capsys.readouterr().err


def test_a_token_that_is_not_set_is_told_before_anything_is_loaded(capsys, folder, monkeypatch):
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    function = f"{folder / 'rewards.py'}:matches"
    assert main(["serve-reward", "--token_env", "REWARD_TOKEN", "--reward_funcs", function]) == 2
    assert "REWARD_TOKEN is not set" in capsys.readouterr().err
    words = ("--reward_url", "http://127.0.0.1:1/score", "--reward_url_token_env", "REWARD_TOKEN")
    assert main(["ppo", "--model_name_or_path", "m", "--dataset_name", "d", *words]) == 2
    assert "REWARD_TOKEN is not set" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(capsys, folder):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve-reward", "--port", port, "--reward_funcs", f"{folder / 'rewards.py'}:matches"]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err
