"""`nearstep completion`: scripts that the shells take, and what they complete."""

import dataclasses
import shutil
import subprocess

import pytest

from nearstep.cli.commands import COMMANDS
from nearstep.cli.main import main
from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import RECIPES


@pytest.fixture
def script(tmp_path, capsys):
    """Writes the script of a shell to a file."""

    def write(shell):
        assert main(["completion", shell]) == 0
        file = tmp_path / ("_nearstep" if shell == "zsh" else f"nearstep.{shell}")
        file.write_text(capsys.readouterr().out, encoding="utf-8")
        return file

    return write


def shell(*words):
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def completed_by_bash(file, line):
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    return shell(
        "bash", "--norc", "-c",
        f"source {file}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _nearstep; echo ${{COMPREPLY[@]}}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nearstep do", ["doctor"]),
        ("nearstep ppo --kl_est", ["--kl_estimator"]),
        ("nearstep ppo --kl_estimator ", ["k1", "k2", "k3", "abs"]),
        ("nearstep ppo --recipe d", [name for name in RECIPES if name.startswith("d")]),
        ("nearstep ppo --no-log_roll", ["--no-log_rollouts"]),
        ("nearstep ppo --output_dir ", []),  # any text: the shell offers files
        ("nearstep ppo --use_cpu --see", ["--seed"]),
        ("nearstep fork --seed 1 --lea", ["--learning_rate"]),
        ("nearstep completion f", ["fish"]),
        ("nearstep score --on_reward_error ", ["raise", "retry", "drop"]),
        ("nearstep unknown --x", []),
    ],
)
def test_bash(line, words, script):
    assert completed_by_bash(script("bash"), line) == words


def test_zsh_and_fish_can_read_theirs(script):
    shell("zsh", "-n", str(script("zsh")))
    file = script("fish")
    shell("fish", "--no-execute", str(file))
    offered = shell("fish", "-c", f"source {file}; complete -C 'nearstep ppo --kl_est'")
    assert offered[0] == "--kl_estimator"


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_command_and_setting_is_there(name, script):
    text = script(name).read_text(encoding="utf-8")
    for field in dataclasses.fields(PPOConfig):
        assert (f"-l {field.name} " if name == "fish" else f"--{field.name}") in text
    assert all(command.name in text for command in COMMANDS)


def test_no_shell_and_another_shell(capsys):
    assert main(["completion"]) == 2
    assert "nearstep completion bash|zsh|fish" in capsys.readouterr().err
    assert main(["completion", "csh"]) == 2
    assert "bash, zsh" in capsys.readouterr().err
