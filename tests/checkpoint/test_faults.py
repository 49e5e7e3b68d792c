"""Whatever happens in the middle of a save: a whole checkpoint is on the disk, and the run goes on from it."""

import errno
import inspect
import json
import resource
import time

import pytest
import torch
from transformers import TrainerCallback

from nearstep import TrainingError
from nearstep.checkpoint import contents, files
from nearstep.checkpoint.seal import check_whole, read_manifest
from nearstep.reports.run_folder import checkpoints
from tests.checkpoint.saved_runs import assert_same_bits, everything, trainer_of
from tests.lanes import slow

OPERATIONS = ("make_folder", "write_tensors", "write_text", "sync", "move", "remove")


class Death(BaseException):
    """The process is gone: no clean-up of its own runs."""


class Faults:
    """Counts file operations, and lets the one of a given number and all after it fail."""

    def __init__(self, monkeypatch, error, *, forever=True):
        self.count, self.fail_at, self.error, self.forever = 0, None, error, forever
        for name in OPERATIONS:
            monkeypatch.setattr(files, name, self._wrapped(vars(files)[name]))

    def _wrapped(self, operation):
        def counted(*given):
            self.count += 1
            if self.fail_at is not None and (
                self.count >= self.fail_at if self.forever else self.count == self.fail_at
            ):
                raise self.error
            return operation(*given)

        return counted


def save(trainer):
    """A save and its end."""
    trainer.recipe.checkpoint.save(trainer.state, "fault")
    trainer.recipe.checkpoint.close()


def test_every_file_operation_is_counted():
    writing = {
        name for name, found in vars(files).items() if inspect.isfunction(found) and found.__module__ == files.__name__
    }
    assert writing - set(OPERATIONS) == {"sha256", "read_tensors", "read_text", "read_json", "as_json"}


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_death_at_any_file_operation_leaves_the_old_or_the_new_checkpoint(tmp_path, monkeypatch, stride):
    trainer = trainer_of(tmp_path, total_episodes=16, save_total_limit=1)
    trainer.train()
    before = everything(trainer)
    faults = Faults(monkeypatch, Death())
    save(trainer)
    operations = faults.count
    assert operations > 15
    for number in range(operations, 0, -stride):  # the last always: it removes what the new one replaces
        trainer.state.update += 1  # a checkpoint of another name, after which the old one goes
        faults.count, faults.fail_at = 0, number
        with pytest.raises(Death):
            save(trainer)
        faults.fail_at = None
        newest = checkpoints(tmp_path)[-1]
        check_whole(newest)
        resumed = trainer_of(tmp_path, total_episodes=8 * 99, save_total_limit=1, resume="auto")
        resumed.recipe.checkpoint.load(resumed.state)
        assert not list(tmp_path.glob(".checkpoint*"))
        assert_same_bits(everything(resumed), before)


@pytest.mark.parametrize("number", [5, slow(1), slow(2), slow(12)])
def test_a_full_disk_is_told_and_costs_no_earlier_checkpoint(tmp_path, monkeypatch, number):
    trainer = trainer_of(tmp_path, total_episodes=8)
    trainer.train()
    faults = Faults(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), forever=False)
    faults.fail_at, trainer.state.update = number, 2
    with pytest.raises(TrainingError, match=r"checkpoint-2 failed: .*No space left.*bytes free\).*checkpoint-1"):
        save(trainer)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
    assert not list(tmp_path.glob(".checkpoint*"))


def test_a_disk_that_takes_no_more_is_told_by_whatever_library_meets_it(tmp_path):
    """The kernel refuses bytes beyond a limit: weights, moments and model folders are all larger."""
    trainer = trainer_of(tmp_path, total_episodes=8, dump_rollouts=str(tmp_path / "rollouts"))
    trainer.train()
    trainer.state.update = 2
    trainer.recipe.checkpoint.announce = lambda *given: None  # the screen of a test is a file as well
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"saving to .* failed: .*bytes free"):
            save(trainer)
        with pytest.raises(TrainingError, match=r"saving to .*policy failed: .*bytes free"):
            trainer.recipe.checkpoint.save_final(trainer.state)
        with pytest.raises(OSError, match="I/O error"):
            files.write_tensors(tmp_path / "a", {"a": torch.zeros(1000)})
        dumped, cpu = trainer.recipe.rewards.folder, torch.device("cpu")
        with pytest.raises(TrainingError, match=r"dump_rollouts: .* cannot be written"):
            dumped.write(2, 0, dumped.rollout(1, 0, cpu), dumped.scores(1, 0, cpu))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1"]
    check_whole(tmp_path / "checkpoint-1")
    assert not list(tmp_path.glob(".checkpoint*"))


@pytest.mark.slow
def test_continue_counts_a_failed_save_and_tries_again(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path, on_save_error="continue")
    faults = Faults(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), forever=False)
    faults.fail_at = 5
    with pytest.warns(UserWarning, match="checkpoint-1 failed.*on_save_error = continue"):
        assert trainer.train().updates == 4
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]
    assert trainer.recipe.checkpoint.failed == 1


class Breaks(TrainerCallback):
    """Sets one weight to NaN after an update."""

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            with torch.no_grad():
                next(model.parameters())[0, 0] = torch.nan


def test_weights_that_are_not_finite_push_no_healthy_checkpoint_out(tmp_path, monkeypatch):
    written = contents.sealed_folder

    def slowly(*args, **kwargs):  # the thread that writes is still at checkpoint-2 when update 3 is found ill
        time.sleep(0.5)
        return written(*args, **kwargs)

    monkeypatch.setattr(contents, "sealed_folder", slowly)
    trainer = trainer_of(tmp_path, save_total_limit=1, given={"callbacks": [Breaks()]})
    with pytest.raises(TrainingError, match=r"update 3: policy: .*weight.* is not finite.*checkpoint-2"):
        trainer.train()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-2"]


@pytest.mark.slow
def test_kinds_push_only_their_own_out(tmp_path):
    given = {"eval_dataset": [{"prompt": "a"}, {"prompt": "b"}]}
    trainer = trainer_of(
        tmp_path, total_episodes=80, save_total_limit=2, keep_steps=4, keep_best=True, eval_steps=1, given=given
    )
    trainer.train()
    kinds = {path.name: read_manifest(path).kind for path in checkpoints(tmp_path)}
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {line["update"]: line["eval/objective/scores"] for line in lines if "eval/objective/scores" in line}
    records = [update for update in scores if scores[update] > max([0, *(scores[n] for n in range(1, update))])]
    best = [update for update in records if update % 4][-1:]
    assert [name for name, kind in kinds.items() if kind == "kept"] == ["checkpoint-4", "checkpoint-8"]
    assert [name for name, kind in kinds.items() if kind == "best"] == [f"checkpoint-{update}" for update in best]
    assert len([name for name, kind in kinds.items() if kind == "fault"]) == 2
