"""What a run's folder says of how it was started."""

import json
import sys
from dataclasses import replace

from nearstep import DecoupledPPOConfig, PPOConfig
from nearstep.config.axes import RANGED_HEADS
from nearstep.config.recipes import RECIPES, recipe_of
from nearstep.reports.reporter import Reporter
from nearstep.reports.run_folder import RunFolder
from nearstep.reports.run_info import RunStart
from tests.reports.helpers import make_callbacks


def begin(start, settings="", after=0):
    """One attempt of a run, which ends as soon as it has begun."""
    callbacks = make_callbacks(start.config)
    with Reporter(start.config, callbacks, total_updates=3, main=True, settings=settings, start=start) as reporter:
        reporter.begin([("updates", 3, "by hand")], "", after=after)


def test_every_attempt_is_told_and_a_new_run_begins_a_new_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/nearstep/__main__.py", "ppo", "--api-key", "s3cret", "--seed", "3"])
    config = PPOConfig(output_dir=str(tmp_path), seed=3)
    start = RunStart(config, {"dataset_name": ["http://me:pw@host:80/rows.jsonl?key=s3cret"]}, ["cpu", "cpu"])
    settings = "seed: 3\n"
    begin(start, settings)
    begin(start, settings, after=2)
    info = RunFolder(tmp_path).info
    first, second = info["attempts"]
    assert first["command"] == ["nearstep", "ppo", "--api-key", "***", "--seed", "3"]
    assert (first["after_update"], second["after_update"]) == (0, 2)
    assert (first["processes"], first["devices"]) == (2, ["cpu", "cpu"])
    assert {"nearstep", "torch", "transformers"} <= first["versions"].keys()
    assert info["batch"] == [{"name": "updates", "value": 3, "how": "by hand"}]
    assert (info["schema"], info["seed"], info["recipe"], info["parent"]) == (1, 3, None, None)
    assert info["changed"]["dataset_name"] == {"value": ["http://***@host:80/rows.jsonl?***"], "default": []}
    assert "s3cret" not in (tmp_path / "run_info.json").read_text()
    # It died before its first checkpoint: the same run.
    begin(replace(start, config=replace(config, resume="auto")), settings)
    assert len(RunFolder(tmp_path).info["attempts"]) == 3
    begin(start, settings)
    assert len(RunFolder(tmp_path).info["attempts"]) == 1
    assert len(json.loads((tmp_path / "run_info.1.json").read_text())["attempts"]) == 3


def test_a_broken_file_of_before_is_begun_anew(tmp_path):
    (tmp_path / "run_info.json").write_text("{")
    begin(RunStart(PPOConfig(output_dir=str(tmp_path))), after=1)
    assert len(RunFolder(tmp_path).info["attempts"]) == 1


def test_a_recipe_is_known_by_its_settings():
    assert recipe_of(PPOConfig()) is None
    assert recipe_of(DecoupledPPOConfig(learning_rate=1e-4)) == "decoupled"
    for name, recipe in RECIPES.items():
        declared = {"value_min": 0.0, "value_max": 1.0} if recipe.get("value_head") in RANGED_HEADS else {}
        assert recipe_of(PPOConfig(**recipe, **declared)) == name
    assert recipe_of(PPOConfig(**{**RECIPES["dapo"], "kl_coef": 0.1})) is None


def test_a_fork_names_its_parent():
    start = RunStart(PPOConfig(fork_from="runs/a/checkpoint-20"))
    assert start.info({}, [], 20)["parent"] == {"run": "runs/a", "update": 20}
