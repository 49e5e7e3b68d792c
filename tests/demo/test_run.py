"""The whole demo at a toy scale: every part runs, the folders can be used, and a seed makes the same models."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from nearstep.demo.prepare import DemoScale, prepare_world
from nearstep.demo.run import run_demo

TINY = DemoScale(supervised_posts=48, ranked_posts=16, prompts=8, held_out=4)


def test_a_quick_demo_runs_and_says_where_everything_lies(tmp_path, capsys):
    outcomes = run_demo(output=tmp_path / "demo", seed=0, quick=True)
    assert set(outcomes) == {"supervised start", "after PPO"}
    printed = capsys.readouterr().out
    for place in ("sft", "reward", "ppo/policy", "ppo/metrics.jsonl", "ppo/report.html", "outcome.json"):
        assert (tmp_path / "demo" / place).exists()
        assert str(tmp_path / "demo" / place) in printed
    assert "95 %" in printed
    assert json.loads((tmp_path / "demo" / "outcome.json").read_text())["after PPO"]["preferred"]["count"] == 32


@pytest.mark.slow
def test_the_same_seed_makes_the_same_world_and_models(tmp_path):
    folders = []
    for name in ("a", "b"):
        torch.rand(3)
        folders.append(prepare_world(tmp_path / name, seed=5, scale=TINY, say=lambda line: None))
    one, two = folders
    assert one.prompts.read_bytes() == two.prompts.read_bytes()
    assert one.held_out.read_bytes() == two.held_out.read_bytes()
    ids = AutoTokenizer.from_pretrained(one.policy)("My cousin", return_tensors="pt")["input_ids"]
    for kind, places in (
        (AutoModelForCausalLM, (one.policy, two.policy)),
        (AutoModelForSequenceClassification, (one.reward, two.reward)),
    ):
        logits = [kind.from_pretrained(place)(ids).logits for place in places]
        assert torch.equal(*logits)
