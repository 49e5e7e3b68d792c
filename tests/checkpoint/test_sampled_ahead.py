"""What was under way at a checkpoint: kept by a run that goes on, asked for anew by a fork, told where it is lost."""

import json

import pytest
import torch

from nearstep.checkpoint.resume import Resumed, settings_at_defaults
from nearstep.checkpoint.sampled_ahead import take_up
from nearstep.checkpoint.seal import CheckpointManifest
from nearstep.checkpoint.snapshot import Snapshot
from nearstep.training.ahead import RolloutStream

BEGUN = {"rows": 8, "data": "abc", "batch": 4}
VALUES, ROWS = {"under_way": [3, 5]}, {"6.tokens": torch.tensor([1])}
MANIFEST = CheckpointManifest(2, "fault", {}, {})


class Stream(RolloutStream):
    def __init__(self):
        self.recalled = []

    def recall(self, values, rows):
        self.recalled.append((values, rows))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "settings.json").write_text(json.dumps({"seed": 1, "num_generations": 2}))
    (tmp_path / "begun.json").write_text(json.dumps(BEGUN))
    return tmp_path


def taken_up(folder, ahead, *, is_fork, values=VALUES, begun=BEGUN, **changed):
    kept = settings_at_defaults() | {"seed": 1, "num_generations": 2} | changed
    snapshot = Snapshot({}, {}, {}, ahead=None if values is None else (values, ROWS))
    return take_up(ahead, snapshot, Resumed(folder, MANIFEST, is_fork=is_fork), kept, begun)


def test_a_run_that_goes_on_has_the_rows(folder):
    assert taken_up(folder, ahead := Stream(), is_fork=False) is None
    assert ahead.recalled == [(VALUES, ROWS)]


def test_a_fork_that_draws_alike_asks_again(folder):
    assert taken_up(folder, ahead := Stream(), is_fork=True, learning_rate=1.0) is None
    assert ahead.recalled == [(VALUES, {})]


@pytest.mark.parametrize("other", [{"seed": 2}, {"begun": {**BEGUN, "data": "x"}}, {"begun": {**BEGUN, "batch": 8}}])
def test_a_fork_that_draws_otherwise_is_told(folder, other):
    assert "had 2 prompts under way" in taken_up(folder, ahead := Stream(), is_fork=True, **other)
    assert ahead.recalled == []


def test_a_fork_in_turn_is_told_unless_nothing_was_under_way(folder):
    assert "may be left out, or others played twice" in taken_up(folder, None, is_fork=True)
    assert taken_up(folder, None, is_fork=True, values={"under_way": []}) is None
    assert taken_up(folder, Stream(), is_fork=True, values=None) is None
