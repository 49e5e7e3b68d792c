"""`--help` shows every setting of a command once, under its section, with type and default."""

import dataclasses

import pytest

from nearstep.cli.commands import COMMANDS
from nearstep.cli.help import command_help
from nearstep.cli.main import main
from nearstep.config.ppo import SECTIONS, PPOConfig


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_setting_stands_there_once(command):
    lines = command_help(command).splitlines()
    for field in dataclasses.fields(command.settings):
        assert len([line for line in lines if line.split()[:1] == [f"--{field.name}"]]) == 1


def test_sections_come_in_order():
    lines = command_help(COMMANDS[0]).splitlines()
    assert [line for line in lines if line in dict(SECTIONS)] == [title for title, _ in SECTIONS]
    assert lines.index("Policy") < lines.index(next(line for line in lines if "--num_ppo_epochs" in line))


@pytest.mark.parametrize(
    "entry",
    [
        "--seed INT                      every random number of the run derives from it (default 42)",
        "--learning_rate NUMBER          peak step size, of policy and critic (default 3e-06)",
        "--reward_funcs TEXT …           reward functions",
        "--kl_estimator k1|k2|k3|abs     how a token's KL",
        "--use_cpu                       stay on the CPU even where there is a GPU; on a GPU nothing has been run yet",
        "--log_rollouts                  write every episode to rollouts.jsonl (on; --no-log_rollouts switches it off)",
        "--dtype float32|bfloat16|float64\n",
        "--config FILE ",
    ],
)
def test_entry(entry, capsys):
    assert main(["ppo", "--help"]) == 0
    assert f"\n  {entry}" in capsys.readouterr().out


def test_lines_fit_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, command_help(COMMANDS[0]).splitlines())) <= 80


def test_sections_name_settings():
    assert {first for _, first in SECTIONS} <= {field.name for field in dataclasses.fields(PPOConfig)}
