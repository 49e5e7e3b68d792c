"""The model card is valid for the hub and tells the facts of the run, not those of the machine."""

import importlib.metadata
import re

import pytest
import torch
import yaml

from nearstep.config.ppo import PPOConfig
from nearstep.config.recipes import DecoupledPPOConfig
from nearstep.reports.model_card import RunFacts, is_hub_name, model_card


def make_facts(**changes) -> RunFacts:
    facts = {
        "config": PPOConfig(output_dir="/home/ada/runs/tldr-ppo", kl_coef=0.1, report_to=("tensorboard", "wandb")),
        "updates": 100,
        "episodes": 6400,
        "policy": "EleutherAI/pythia-160m",
        "critic": "/home/ada/models/reward",
        "rewards": ("/home/ada/models/reward", "no_repeats"),
        "dataset": "trl-lib/tldr",
        "metrics": {"objective/scores": 1.23456, "lr": 3e-6, "eval/objective/scores": 1.5, "reward/a|b": 0.5},
    }
    return RunFacts(**(facts | changes))


def parts(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def rows(body: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading."""
    section = body.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[1:]]


def test_front_matter_is_what_the_hub_reads():
    front, _ = parts(model_card(make_facts()))
    assert front == {
        "library_name": "transformers",
        "tags": ["nearstep", "ppo", "reinforcement-learning"],
        "pipeline_tag": "text-generation",
        "base_model": "EleutherAI/pythia-160m",
        "datasets": ["trl-lib/tldr"],
    }


def test_local_names_and_objects_are_no_hub_names(tmp_path):
    front, body = parts(model_card(make_facts(policy=str(tmp_path), dataset=None)))
    assert "base_model" not in front
    assert "datasets" not in front
    assert "an object in memory" in body


def test_facts_settings_metrics_and_versions():
    _, body = parts(model_card(make_facts()))
    facts = dict(rows("## Facts\n" + body, "Facts"))
    assert facts["policy started from"] == "`EleutherAI/pythia-160m`"
    assert facts["rewards"] == "`…/reward`, `no_repeats`"
    assert (facts["updates"], facts["episodes"]) == ("100", "6400")
    assert rows(body, "Settings") == [
        ["`output_dir`", "`…/tldr-ppo`"], ["`kl_coef`", "`0.1`"], ["`report_to`", "`tensorboard`, `wandb`"],
    ]  # fmt: skip
    metrics = {name: value for name, value, _ in rows(body, "Metrics")}
    assert metrics == {"`objective/scores`": "1.235", "`eval/objective/scores`": "1.5", r"`reward/a\|b`": "0.5"}
    versions = dict(rows(body, "Versions"))
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == importlib.metadata.version("transformers")
    assert versions["nearstep"] == importlib.metadata.version("nearstep")


def test_the_recipe_is_named_where_there_is_one():
    _, body = parts(model_card(make_facts(config=DecoupledPPOConfig(output_dir="out"))))
    assert "| recipe | `decoupled` |" in body
    assert "| recipe |" not in parts(model_card(make_facts()))[1]


def test_no_path_of_the_machine_is_told():
    for role in ("policy", "value"):
        assert "/home/ada" not in model_card(make_facts(), role)


def test_the_critics_card_speaks_of_the_critic():
    front, body = parts(model_card(make_facts(), "value"))
    assert "pipeline_tag" not in front
    assert "base_model" not in front  # it started from a local folder
    assert "# tldr-ppo: critic" in body
    assert "AutoModelForSequenceClassification.from_pretrained" in body


@pytest.mark.parametrize("name", ['a: "b" [c] #d', "---", "$title ${x}", "| pipes |\nand lines"])
def test_hostile_names_break_neither_yaml_nor_tables(name):
    config = PPOConfig(output_dir="out", run_name=name, dataset_name=name)
    front, body = parts(model_card(make_facts(config=config, dataset=name, rewards=(name,))))
    assert front["library_name"] == "transformers"
    assert all(len(row) == 2 for row in rows(body, "Settings"))


def test_a_run_without_metrics_or_changed_settings():
    _, body = parts(model_card(make_facts(config=PPOConfig(), metrics={})))
    assert rows(body, "Settings") == rows(body, "Metrics") == []
    assert body.count("None.") == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EleutherAI/pythia-160m", True),
        ("train_dataset", False),
        ("data/prompts.jsonl", False),
        ("/abs/folder", False),
        ("a/b/c", False),
        ("", False),
        (None, False),
    ],
)
def test_is_hub_name(name, expected):
    assert is_hub_name(name) is expected


def test_a_folder_here_is_no_hub_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "sft").mkdir(parents=True)
    assert not is_hub_name("models/sft")


def test_a_type_that_is_another_than_in_the_folder_is_told():
    body = parts(model_card(make_facts(stored="bfloat16")))[1]
    assert "| type of the weights | float32; bfloat16 in the folder that it started from |" in body
    assert "type of the weights" not in parts(model_card(make_facts()))[1]
