"""Every entry of a checkpoint is needed: one that is missing is named, even where the manifest fits (R04)."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from nearstep import CheckpointError
from nearstep.checkpoint.seal import check_whole, sealed_folder
from nearstep.checkpoint.snapshot import ADDED_LATER
from nearstep.training.state import State
from tests.checkpoint.saved_runs import trainer_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, total_episodes=8, normalize_scores="scale").train()
    return folder


def sealed_again(run, change):
    """A checkpoint that is whole, with something changed before it was sealed."""
    target = run.parent / "changed" / "checkpoint-1"
    shutil.rmtree(target.parent, ignore_errors=True)
    target.parent.mkdir()
    with sealed_folder(target, update=1, kind="fault", parent=None) as folder:
        shutil.copytree(run / "checkpoint-1", folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        change(folder / "training")
    check_whole(target)
    return target


def loaded(run, place):
    trainer = trainer_of(run.parent / "new", total_episodes=8, normalize_scores="scale", resume=str(place))
    trainer.recipe.checkpoint.load(trainer.state)


def test_a_tensor_that_is_missing_is_named(run):
    tensors = {
        name: load_file(run / "checkpoint-1" / "training" / f"{name}.safetensors") for name in ("policy", "value")
    }
    for network, by_name in tensors.items():
        kinds = {name.rsplit(":", 1)[1] for name in by_name}
        assert kinds == {"weight", "exp_avg", "exp_avg_sq", "step"}
        for kind in sorted(kinds):
            name = next(name for name in by_name if name.endswith(f":{kind}"))

            def remove(folder, network=network, name=name, by_name=by_name):
                save_file(
                    {key: value for key, value in by_name.items() if key != name}, folder / f"{network}.safetensors"
                )

            with pytest.raises(CheckpointError, match=f"{network}.*{name}.* is missing"):
                loaded(run, sealed_again(run, remove))


@pytest.mark.slow
def test_a_value_that_is_missing_is_named(run):
    original = json.loads((run / "checkpoint-1" / "training" / "state.json").read_text())
    assert set(original["state"]) == set(vars(State())) - {"before", "first_answers"}
    entries = [
        *((name,) for name in original),
        *(("state", name) for name in original["state"] if name not in ADDED_LATER),
    ]
    for entry in entries:

        def remove(folder, entry=entry):
            content = json.loads(json.dumps(original))
            place = content
            for name in entry[:-1]:
                place = place[name]
            del place[entry[-1]]
            (folder / "state.json").write_text(json.dumps(content))

        with pytest.raises(CheckpointError, match=f"{entry[-1]} is missing"):
            loaded(run, sealed_again(run, remove))


def test_another_shape_is_refused(run):
    path = "policy.safetensors"

    def widen(folder):
        tensors = load_file(folder / path)
        name = next(name for name in tensors if name.endswith(":weight"))
        save_file({**tensors, name: torch.zeros(3, 3)}, folder / path)

    with pytest.raises(CheckpointError, match=r"has shape \[3, 3\], and here it has"):
        loaded(run, sealed_again(run, widen))
