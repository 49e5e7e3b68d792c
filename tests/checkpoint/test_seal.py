"""A checkpoint counts only while every byte is as it was written."""

import json

import pytest

from nearstep import CheckpointError
from nearstep.checkpoint.resume import choose_checkpoint, settings_to_keep
from nearstep.checkpoint.seal import MANIFEST, check_whole, sealed_folder
from nearstep.reports.run_folder import checkpoints
from tests.checkpoint.saved_runs import trainer_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, total_episodes=16).train()
    return folder


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damages(path):
    """Contents that the file could have after a fault, each with its name."""
    content = path.read_bytes()
    flipped = [
        content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
        for place in (0, len(content) // 3, len(content) - 1)
        for bit in (1, 0x80)
    ]
    return [b"", content[: len(content) // 2], content[:-1], content + b" ", *flipped]


def test_damage_to_any_file_is_found_and_the_one_before_is_taken(run):
    kept = settings_to_keep(trainer_of(run, total_episodes=16).recipe.config, {})
    newest = run / "checkpoint-2"
    for path in files_of(newest):
        original = path.read_bytes()
        for content in damages(path):
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=path.name.replace(".", r"\.")):
                choose_checkpoint(run, str(newest), kept)
            chosen = choose_checkpoint(run, "auto", kept)
            assert chosen.folder.name == "checkpoint-1"
            assert path.name in chosen.notes[0]
        path.write_bytes(original)
    assert choose_checkpoint(run, "auto", kept).folder == newest
    assert choose_checkpoint(run, "checkpoint-1", kept).folder == run / "checkpoint-1"  # by its name


def test_a_file_more_or_less_is_found(run):
    folder = run / "checkpoint-1"
    extra = folder / "training" / "more.safetensors"
    extra.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"more\.safetensors is not part of the checkpoint"):
        check_whole(folder)
    extra.unlink()
    for path in files_of(folder):
        moved = path.rename(run / "elsewhere")
        with pytest.raises(CheckpointError, match=path.name):
            check_whole(folder)
        moved.rename(path)
    check_whole(folder)


def test_an_entry_of_the_manifest_cannot_be_changed_with_its_file(run):
    path = run / "checkpoint-1" / MANIFEST
    original = path.read_text()
    content = json.loads(original)
    content["update"] = 7
    path.write_text(json.dumps(content, indent=1) + "\n")
    with pytest.raises(CheckpointError, match="is not as it was written"):
        check_whole(path.parent)
    path.write_text(original)


def half(target):
    """Work that fails in the middle."""
    with sealed_folder(target, update=3, kind="fault", parent=None) as folder:
        (folder / "a").write_text("half")
        raise OSError("full")


def test_work_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(OSError, match="full"):
        half(tmp_path / "checkpoint-3")
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", "checkpoint-", ".checkpoint-11.unfinished"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
