"""`--nproc N`: how many processes, what is left of the words, and how the command becomes torchrun."""

import os
import sys

import pytest

from nearstep.cli import several
from nearstep.cli.main import main
from nearstep.common.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "processes", "rest"),
    [
        ([], 1, []),
        (["--nproc", "4", "--seed", "1"], 4, ["--seed", "1"]),
        (["--seed", "1", "--nproc=2"], 2, ["--seed", "1"]),
        (["--nproc", "1"], 1, []),
    ],
)
def test_the_flag_is_taken_out(words, processes, rest):
    assert several.take_processes(words, {}) == (processes, rest)


@pytest.mark.parametrize("words", [["--nproc"], ["--nproc", "0"], ["--nproc", "two"], ["--nproc=-1"]])
def test_what_is_no_number_is_refused(words):
    with pytest.raises(ConfigError, match="must be a number of processes"):
        several.take_processes(words, {})


def test_a_process_of_a_launcher_starts_no_others():
    with pytest.raises(ConfigError, match="one of 2 processes that a launcher has started"):
        several.take_processes(["--nproc", "2"], {"WORLD_SIZE": "2"})
    assert several.take_processes(["--nproc", "1"], {"WORLD_SIZE": "2"}) == (1, [])


def test_a_command_becomes_torchrun_with_its_own_words(monkeypatch, tmp_path):
    """Its settings are checked once before; the flag itself does not reach the processes."""
    started = []
    monkeypatch.setattr(os, "execve", lambda *given: started.append(given) or sys.exit(7))
    policy, prompts = tmp_path / "policy", tmp_path / "prompts.jsonl"
    policy.mkdir()
    prompts.write_text('{"prompt": "a"}\n')
    words = ["--model_name_or_path", str(policy), "--dataset_name", str(prompts), "--reward_funcs", "length"]
    with pytest.raises(SystemExit, match="7"):
        main(["ppo", *words, "--nproc", "2", "--dp_shard", "2"])
    ((program, command, environment),) = started
    assert program == sys.executable
    assert command[1:6] == ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    assert command[6:] == ["-m", "nearstep", "ppo", *words, "--dp_shard", "2"]
    assert int(environment["OMP_NUM_THREADS"]) >= 1


def test_wrong_settings_are_told_before_any_process_starts(monkeypatch, capsys):
    monkeypatch.setattr(os, "execve", lambda *given: pytest.fail("a process was started"))
    assert main(["ppo", "--nproc", "2", "--learning_rte", "1"]) == 2
    assert "learning_rate" in capsys.readouterr().err
