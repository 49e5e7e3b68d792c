"""Several processes train on what one generation process has sampled: each has its rows of the same batch."""

import json
from dataclasses import dataclass, field

import pytest
import torch

from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.clock import Clock
from nearstep.training.shared_ahead import SharedStream
from tests import two_ranks
from tests.training.test_ahead import CPU, SETTINGS, Draws, Link, numbers, stream


@dataclass(frozen=True)
class Told(TorchBackend):
    """Stands in for two processes that come one after the other: what the first has passed is what all have."""

    passed: list = field(default_factory=list)

    def gather(self, item):
        if self.rank == 0:
            self.passed.append(item)
        return [self.passed[-1], None]


def two(link, **changed):
    passed = []
    return [
        SharedStream(
            stream(link, **changed) if rank == 0 else None, Draws(), range(2 * rank, 2 * rank + 2),
            Told(rank, 2, CPU, passed=passed), Clock(CPU), CPU,
        )
        for rank in (0, 1)
    ]  # fmt: skip


def test_each_process_has_its_rows_of_the_batch_that_one_process_would_have():
    alone, shared = stream(Link(held={0}), share=0.75), two(link := Link(held={0}), share=0.75)
    runs = [each.batches(after=0, until=3) for each in shared]
    for whole in alone.batches(after=0, until=3):
        first, second = map(next, runs)
        assert (first.ids + second.ids, first.episodes + second.episodes) == (whole.ids, whole.episodes)
        tokens = [each.rollout(part, SETTINGS).tokens for each, part in zip(shared, (first, second), strict=True)]
        assert torch.cat(tokens).tolist() == alone.rollout(whole, SETTINGS).tokens.tolist()
        assert shared[1].numbers(second.episodes) == [number for number in numbers(second) for _ in (0, 1)]
    assert [next(run, None) for run in runs] == [None, None]
    assert (link.starts, link.runs) == (1, False)


def test_what_was_left_behind_is_known_to_all_and_remembered_by_the_first():
    shared = two(Link(held={0}), drops=True)
    runs = [each.batches(after=0, until=3) for each in shared]
    for _ in range(2):
        parts = [*map(next, runs)]
    assert [each.dropped for each in shared] == [2, 2]
    metrics = [each.metrics(each.rollout(part, SETTINGS)) for each, part in zip(shared, parts, strict=True)]
    assert {each.numbers()["staleness/dropped"] for each in metrics} == {2.0}
    assert metrics[0].numbers().keys() == metrics[1].numbers().keys()
    assert [each.memory() is None for each in shared] == [False, True]


@pytest.mark.slow
def test_two_processes_train_on_what_one_samples_ahead_and_go_on(tmp_path):
    """A whole run, and a second that goes on from its checkpoint: every prompt once, none too old."""
    for episodes in (32, 64):
        done = two_ranks.start("tests.training.ahead_of_two", tmp_path, episodes, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["update"] for entry in found] == list(range(1, 9))
    ages = [entry["staleness/age_max"] for entry in found]
    assert (ages[0], max(ages)) == (0.0, 2.0)
    assert max(entry["val/ratio_max_gap_first"] for entry in found[:1]) < 1e-4
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == len(rows) == 64
