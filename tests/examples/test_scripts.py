"""The example scripts of decoupled and divergence PPO: `nearstep ppo` under their recipe, with the flags as typed."""

import runpy
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
