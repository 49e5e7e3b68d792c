"""Two gloo processes train the reward model that one trains, write it once, and report the same."""

import json

import pytest
import torch

from tests import two_ranks
from tests.reward_modeling import two_processes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of one and of two processes, and what the two said."""
    base = tmp_path_factory.mktemp("processes")
    one, two = base / "one", base / "two"
    two_processes.main(one, 12)
    done = two_ranks.start("tests.reward_modeling.two_processes", two, 6)
    assert done.returncode == 0, done.stdout + done.stderr
    return one, two, done.stdout


def test_weights_are_the_same(runs):
    one, two = (torch.load(folder / "weights.pt") for folder in runs[:2])
    for name, weights in one.items():
        assert (weights - two[name]).abs().max() <= 1e-9, name


def test_report_and_metrics_are_the_same(runs):
    one, two = (json.loads((folder / "report.json").read_text()) for folder in runs[:2])
    (first,), (second,) = (report["held_out"].pop("by_reward_gap") for report in (one, two))
    assert second == pytest.approx(first)
    assert [report["held_out"].pop("by_label_gap") for report in (one, two)] == [[], []]
    assert two["held_out"] == pytest.approx(one["held_out"])
    assert two["offset"] == pytest.approx(one["offset"])
    logged = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in runs[:2]]
    for first, second in zip(*logged, strict=True):
        for name in {"loss", "accuracy", "mean_reward", "min_reward", "eval_accuracy"} & first.keys():
            assert second[name] == pytest.approx(first[name], abs=1e-6), name


def test_one_process_writes_and_speaks(runs):
    *folders, said = runs
    for folder in folders:
        assert {path.name for path in folder.iterdir()} == {
            "reward", "report.json", "metrics.jsonl", "run.yaml", "weights.pt",
        }  # fmt: skip
    assert said.count("The reward model is in") == 1
