"""The example scripts of decoupled and divergence PPO: `nearstep ppo` under their recipe, with the flags as typed."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from nearstep.cli.main import COMMANDS

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts" / "ppo"
FLAGS = [
    "--dataset_name", "trl-internal-testing/descriptiveness-sentiment-trl-style", "--dataset_train_split",
    "descriptiveness", "--learning_rate", "3e-6", "--output_dir", "out", "--per_device_train_batch_size", "64",
    "--total_episodes", "10000", "--model_name_or_path", "EleutherAI/pythia-1b-deduped", "--reward_funcs", "length",
]  # fmt: skip


@pytest.mark.parametrize(("name", "flags", "expected"), [
    ("decoupled", ["--vf_learning_rate", "1e-4"], {"critic": "decoupled", "vf_learning_rate": 1e-4}),
    ("dppo", ["--vf_learning_rate", "1e-4"], {"critic": "decoupled", "vf_learning_rate": 1e-4}),
    ("ppo", ["--non_eos_penalty"], {"critic": "joint", "non_eos_penalty": True}),
    ("ppo_tldr", ["--non_eos_penalty", "--stop_token", "eos"], {"critic": "joint", "non_eos_penalty": True}),
    ("divergence", [], {"trust_region": "binary_tv", "kl_coef": 0.0}),
])  # fmt: skip
def test_a_script_trains_under_its_recipe(name, flags, expected, monkeypatch):
    asked = []
    monkeypatch.setattr("nearstep.cli.main.main", lambda words: asked.extend(words) or 0)
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / f"{name}.py"), *FLAGS, *flags])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert asked[0] == "ppo"
    config = COMMANDS[0].read(asked[1:])
    assert {setting: vars(config)[setting] for setting in expected} == expected
    assert (config.dataset_train_split, config.total_episodes) == (("descriptiveness",), 10000)


def test_the_first_try_as_typed_has_prompts_and_is_told_of_rewards(monkeypatch, capsys):
    typed = ["--output_dir", "o", "--model_name_or_path", str(SCRIPTS), "--non_eos_penalty"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "ppo.py"), *typed])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / "ppo.py"), run_name="__main__")
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "1 problem in the settings:\n  - no reward: " in said
    assert "--reward_funcs length, or any model as reward_model_path with --random_reward_head" in said


def test_mindspeeds_script_prepares_and_trains_under_its_flags(tmp_path, monkeypatch):
    """With a stand-in for the command that writes down what it was given."""
    command = tmp_path / "nearstep"
    command.write_text('#!/bin/bash\nprintf "%s\\n" "$*" >> "$(dirname "$0")/asked"\n')
    command.chmod(0o755)
    data = tmp_path / "alpaca"
    places = {
        "MODEL": "policy",
        "REWARD": "reward",
        "INPUT": "a.parquet",
        "DATA_PATH": str(data),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    script = SCRIPTS.parents[1] / "mcore" / "llama32" / "trl_ppo_llama32_1b.sh"
    subprocess.run(["bash", str(script), "--do-sample"], check=True, env={**os.environ, **places}, cwd=tmp_path)
    prepare, ppo = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
    assert prepare[:3] == ["prepare", "--input", "a.parquet"]
    assert ppo[:3] == ["ppo", "--nproc", "1"]
    for place in (data, tmp_path / "policy", tmp_path / "reward"):
        place.mkdir()
    monkeypatch.chdir(tmp_path)
    config = COMMANDS[0].read(ppo[3:])
    assert (config.ref_model_path, config.model_name_or_path, config.reward_model_path) == (
        "policy",
        "policy",
        "reward",
    )
    assert (config.kl_coef, config.max_length, config.response_length, config.do_sample) == (0.3, 256, 128, True)


@pytest.mark.parametrize(("given", "own"), [
    ([], ["--dataset_name", "trl-internal-testing/tldr-preference-sft-trl-style", "--split", "validation"]),
    (["--dataset-name", "d"], ["--split", "validation"]),
    (["--dataset_name=d", "--split", "s"], []),
])  # fmt: skip
def test_completions_of_posts_have_trls_data_set_unless_another_is_given(given, own, monkeypatch):
    asked = []
    script = str(SCRIPTS.parent / "evals" / "generate_tldr.py")
    monkeypatch.setattr("nearstep.cli.main.main", lambda words: asked.extend(words) or 0)
    monkeypatch.setattr(sys, "argv", [script, *given, "--n", "9"])
    with pytest.raises(SystemExit):
        runpy.run_path(script, run_name="__main__")
    assert asked == ["generate", *own, *given, "--n", "9"]
