"""What holds for a run as a whole: nothing unpickled, no secret shown, nothing growing, no connection made."""

import gc
import json
import os
import pickle
import socket
import threading
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

from tests.checkpoint.saved_runs import ROWS, trainer_of

PLAIN = {".safetensors", ".json", ".jsonl", ".md", ".jinja", ".yaml"}


def refuse(*given, **named):
    """Stands for every function that unpickles."""
    raise AssertionError("something was unpickled")


def test_train_save_resume_evaluate_and_export_without_unpickling_r28(tmp_path, monkeypatch):
    import datasets  # noqa: F401 (what it imports derives classes of pickle's)

    for module, names in ((pickle, ("load", "loads", "Unpickler", "_Unpickler")), (torch, ("load",))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    given = {"eval_dataset": ROWS[:2]}
    trainer_of(tmp_path, total_episodes=16, given=given).train()
    longer = trainer_of(tmp_path, total_episodes=24, given=given, resume="auto")
    assert longer.train().updates == 3
    longer.save_model(tmp_path / "exported")
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= PLAIN


def test_secrets_of_the_environment_are_nowhere_r31(tmp_path, monkeypatch, capfd):
    canaries = {
        "HF_TOKEN": "hf_canary1234567890", "WANDB_API_KEY": "canary2abcdef", "REWARD_TOKEN": "canary3abcdef",
        "AWS_SECRET_ACCESS_KEY": "canary4abcdef",
    }  # fmt: skip
    for name, secret in canaries.items():
        monkeypatch.setenv(name, secret)
    trainer_of(tmp_path, total_episodes=16, given={"eval_dataset": ROWS[:2]}).train()
    shown = capfd.readouterr()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in canaries.values():
        assert secret not in shown.out + shown.err
        assert not any(secret.encode() in content for content in written)


def test_a_run_opens_no_connection_r33(tmp_path, monkeypatch):
    def refuse_connection(self, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse_connection)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    trainer_of(tmp_path, total_episodes=16, given={"eval_dataset": ROWS[:2]}).train()


class Watch(TrainerCallback):
    """Resident memory, open files and threads after each update."""

    def __init__(self):
        self.found = []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % 20 == 0:
            gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.found.append((pages, len(os.listdir("/proc/self/fd")), threading.active_count()))


@pytest.mark.slow
def test_two_thousand_updates_grow_nothing_r34(tmp_path):
    watch, updates = Watch(), int(os.environ.get("NEARSTEP_LONG_RUN_UPDATES", "2000"))
    trainer_of(
        tmp_path, total_episodes=8 * updates, save_steps=100, save_total_limit=2, logging_steps=50, num_ppo_epochs=1,
        given={"callbacks": [watch]},
    ).train()  # fmt: skip
    early, late = watch.found[199], watch.found[-1]
    assert late[0] <= 1.05 * early[0]
    assert late[1] <= early[1] + 2
    assert late[2] <= early[2] + 2
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    tenth = max(1, len(seconds) // 10)
    assert max(seconds[-tenth:]) <= 1.25 * max(seconds[:tenth])
