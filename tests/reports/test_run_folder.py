"""What a run's folder says to its readers."""

import json
import subprocess
import sys

import pytest

from nearstep.common.errors import DataError
from nearstep.reports.run_folder import RunFolder


def write(path, *lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn, encoding="utf-8")


def test_lines_are_typed_by_their_file_and_a_torn_one_is_passed_over(tmp_path):
    training, evaluation = {"update": 1, "lr": 0.1}, {"update": 1, "eval/objective/scores": 2.0}
    write(tmp_path / "metrics.jsonl", training, evaluation, torn='{"update": 2, "lr"')
    write(tmp_path / "metrics.1.jsonl", {"update": 9, "lr": 9.0})
    write(tmp_path / "samples.jsonl", {"update": 1, "query": "a\u2028b"})
    run = RunFolder(tmp_path)
    assert (list(run.metrics), list(run.evaluations)) == ([training], [evaluation])
    assert run.samples[0]["query"] == "a\u2028b"
    assert [*run.rollouts, *run.tokens, *run.profiles, *run.alerts, *run.eval_rollouts] == []
    assert (run.settings, run.info, run.changed, run.policy) == ({}, {}, {}, None)
    assert run.name == tmp_path.name


def test_lines_of_the_wanted_updates_alone(tmp_path):
    write(tmp_path / "metrics.jsonl")
    write(tmp_path / "rollouts.jsonl", *({"update": update, "episode": update * 10} for update in (1, 2, 2, 3)))
    run = RunFolder(tmp_path)
    assert [line["episode"] for line in run.lines("rollouts.jsonl", wanted=lambda update: update != 2)] == [10, 30]


def test_settings_of_another_value_than_the_default(tmp_path):
    text = "kl_coef: 0.2\nseed: 42\nreward_weights: [1.0, 2.0]\nrun_name: warm\nof_another_nearstep: 1\n"
    (tmp_path / "run.yaml").write_text(text)
    run = RunFolder(tmp_path)
    assert run.name == "warm"
    assert run.changed == {
        "kl_coef": {"value": 0.2, "default": 0.05},
        "reward_weights": {"value": [1.0, 2.0], "default": None},
        "run_name": {"value": "warm", "default": None},
    }


def test_models_and_checkpoints_are_found(tmp_path):
    write(tmp_path / "metrics.jsonl")
    for name in ("checkpoint-2/policy", "checkpoint-10/policy", "checkpoint-best", ".checkpoint-11.unfinished"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("checkpoint-2", "checkpoint-10"):
        (tmp_path / name / "policy" / "config.json").write_text("{}")
    run = RunFolder(tmp_path)
    assert [folder.name for folder in run.checkpoints] == ["checkpoint-2", "checkpoint-10"]
    assert run.policy == tmp_path / "checkpoint-10" / "policy"
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    assert run.policy == tmp_path / "policy"


def test_what_is_no_run_and_what_is_no_line_is_said(tmp_path):
    with pytest.raises(DataError, match="no folder: give the output_dir"):
        RunFolder(tmp_path / "absent")
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "run.yaml").write_text("seed: 1\n")
    with pytest.raises(DataError, match=r"no run\.yaml and no metrics\.jsonl; it holds the runs 'ppo'"):
        RunFolder(tmp_path)
    (tmp_path / "ppo" / "metrics.jsonl").write_bytes(b'{"update": 1}\nnonsense\n{"update": 2}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: no JSON"):
        _ = RunFolder(tmp_path / "ppo").metrics
    (tmp_path / "ppo" / "run.yaml").write_text("- a list\n")
    with pytest.raises(DataError, match=r"run\.yaml holds no settings"):
        _ = RunFolder(tmp_path / "ppo").settings


def test_reading_a_run_loads_no_heavy_library():
    code = "import sys; import nearstep.reports.run_folder; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pandas", "transformers"} & set(loaded)
