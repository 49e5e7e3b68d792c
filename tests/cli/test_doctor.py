"""nearstep doctor: of a run the verdict and an exit code, of a machine what a run would miss."""

import json
import re

import pytest

from nearstep.cli import machine
from nearstep.cli.main import main
from nearstep.common.errors import RewardError
from nearstep.reports.unfinished import Unfinished
from nearstep.trainer import PPOTrainer
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import PROMPTS, low_ids, settings


def alike(completion_ids, **columns):
    return [1.0] * len(completion_ids)


def trained(folder, reward, **changes):
    """A run of four updates."""
    trainer = PPOTrainer(
        args=settings(folder, total_episodes=32, **changes), processing_class=byte_tokenizer(),
        model=tiny_causal_lm(layers=1), reward_funcs=reward, train_dataset=[{"prompt": text} for text in PROMPTS],
    )  # fmt: skip
    assert trainer.health().state == "unknown"
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def ill(tmp_path_factory):
    """A run whose reward teaches nothing."""
    folder = tmp_path_factory.mktemp("doctor") / "ill"
    return folder, trained(folder, alike)


def test_the_verdict_while_it_trains_and_after(ill, capsys):
    folder, trainer = ill
    verdict = trainer.health()
    assert (verdict.state, verdict.cause.rule.name) == ("ill", "no_spread")
    told = [json.loads(line) for line in (folder / "alerts.jsonl").read_text().splitlines()]
    (alert,) = [each for each in told if each["rule"] == "no_spread"]
    assert alert["level"] == "error"
    assert alert["update"] == 3  # the first of which it can be said
    assert list(alert)[:7] == ["update", "level", "rule", "title", "text", "look_at", "next"]
    levels = [json.loads(line)["health/level"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert levels[2:] == [2, 2]


def test_doctor_of_an_ill_run(ill, capsys):
    folder, _ = ill
    assert main(["doctor", str(folder)]) == 3
    shown = capsys.readouterr().out
    assert "is ill" in shown
    assert "Cause: The reward says the same of every response" in shown
    assert main(["doctor", str(folder), "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["cause"]) == ("ill", "no_spread")
    assert found["alerts"][0]["next"]


def test_doctor_of_a_healthy_run_and_of_no_run(tmp_path, capsys):
    trained(tmp_path / "run", low_ids, response_length=8, stop_token=None)
    capsys.readouterr()
    assert main(["doctor", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"verdict": "healthy", "update": 4, "cause": None, "alerts": []}
    assert not (tmp_path / "run" / "alerts.jsonl").exists()
    assert main(["doctor", str(tmp_path)]) == 1
    assert "no folder of a run" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "nowhere")]) == 2


def test_nothing_can_be_said_without_updates_of_a_policy(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("seed: 1\n")
    assert main(["doctor", str(tmp_path)]) == 1
    assert "has no metrics yet" in capsys.readouterr().out
    run = Unfinished(tmp_path, main=True)
    run.begin()
    run.leave(RewardError("reward function 'mine' raised KeyError: 'x'"))
    assert main(["doctor", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("Not over: RewardError: reward function 'mine' raised KeyError: 'x' (")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 0.7}\n')
    for command in ("doctor", "report"):
        assert main([command, str(tmp_path)]) == 1
        assert re.search(r"metrics.jsonl, line 1: .* reward model: nearstep compare", capsys.readouterr().err)


@pytest.mark.slow
def test_health_can_be_switched_off(tmp_path):
    trained(tmp_path, alike, health_checks=False)
    assert not (tmp_path / "alerts.jsonl").exists()
    assert "health/level" not in (tmp_path / "metrics.jsonl").read_text()


def test_doctor_of_the_machine(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    states = {check["name"]: check["state"] for check in found["checks"]}
    assert found["fit"]
    assert states["packages"] == "ok"
    assert {"nearstep", "processors", "memory", "disk", "GPU", "sandbox", "environment", "extra peft"} <= set(states)

    monkeypatch.setattr(machine, "LEAST_DISK", 2**60)
    monkeypatch.setattr(machine, "_installed", lambda package: None if package == "peft" else "0.0.1")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert main(["doctor"]) == 3
    shown = capsys.readouterr().out
    assert "problem  disk:" in shown
    assert "other version: " in shown
    assert "missing  extra peft: not installed: peft. pip install" in shown
    assert "OMP_NUM_THREADS=7" in shown
