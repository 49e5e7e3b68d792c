"""The TL;DR recipe: commands read their settings files, and the demo's world goes through all steps."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from nearstep.cli.main import COMMANDS

RECIPE = Path(__file__).parents[2] / "recipes" / "tldr"
SIZES = ("1b", "6.9b", "demo")


@pytest.fixture
def place(tmp_path):
    """Where the names of a size's files lead: for the demo's, files that are there."""
    world = tmp_path / "world"
    world.mkdir()
    for name in ("summaries", "comparisons", "prompts", "test"):
        (world / f"{name}.jsonl").write_text("{}\n")
    for size in SIZES:
        (tmp_path / size).mkdir()
        for file in (RECIPE / size).glob("*.yaml"):
            (tmp_path / size / file.name).write_text(file.read_text().replace("WORLD", str(world)))
    return tmp_path


def settings(command, file, *flags):
    """What a command reads from a file."""
    found = next(one for one in COMMANDS if one.name == command)
    return found.read([*flags, "--config", str(file / f"{command}.yaml")])


@pytest.mark.parametrize("size", SIZES)
def test_commands_read_their_files(size, place, monkeypatch, recwarn):
    monkeypatch.chdir(RECIPE.parents[1])
    reward = settings("reward", place / size, "--model_name_or_path", "sft", "--output_dir", "out")
    ppo = settings("ppo", place / size, "--model_name_or_path", "sft", "--reward_model_path", "org/reward")
    completions = settings("generate", place / size, "--model_name_or_path", "sft", "--output", "out.jsonl")
    (place / "sft.jsonl").touch()
    settings("judge", place / size, "--files", str(place / "sft.jsonl"))
    assert ppo.stop_token == "eos"
    assert ppo.missing_eos_penalty is not None
    assert completions.response_length == ppo.response_length
    assert reward.normalize == "mean"
    assert not list(recwarn)


@pytest.mark.parametrize(("size", "rows"), [("1b", 128), ("6.9b", 128), ("demo", None)])
def test_the_supervised_start_reads_its_file(size, rows):
    sft = runpy.run_path(str(RECIPE / "sft.py"))
    words = ["--config", str(RECIPE / size / "sft.yaml"), "--output_dir", "out", "--bf16", "false"]
    names, training = sft["arguments"](words)
    assert (names.dataset_train_split, training.num_train_epochs, str(training.output_dir)) == ("train", 1, "out")
    if rows is not None:
        assert 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps == rows
    (flag, _) = sft["arguments"]([*words, "--model_name_or_path", "mine"])
    assert flag.model_name_or_path == "mine"


@pytest.mark.slow
def test_the_demo_goes_through_all_steps(tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "POSTS": "400"}
    run = ["sh", str(RECIPE / "run.sh"), "demo", str(out)]
    told = subprocess.run(run, env=environment, cwd=RECIPE.parents[1], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.count("win rate of response0") == 2
    assert (out / "ppo" / "report.html").is_file()
    rows = [json.loads(line) for line in (out / "ppo.jsonl").read_text().splitlines()]
    assert len(rows) == 400
    assert rows[0].keys() >= {"prompt", "completion", "reference"}
    written = (out / "ppo.jsonl").stat().st_mtime_ns
    again = subprocess.run(run, env=environment, cwd=RECIPE.parents[1], capture_output=True, check=False)
    assert again.returncode == 0
    assert (out / "ppo.jsonl").stat().st_mtime_ns == written
