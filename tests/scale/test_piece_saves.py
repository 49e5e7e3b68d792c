"""Checkpoints to which every process brings its part hold what a whole one holds, and go on in any layout."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nearstep.checkpoint.piece_files import StoredTensors
from nearstep.checkpoint.seal import check_whole
from nearstep.reports.run_folder import checkpoints
from tests import two_ranks
from tests.scale import sharded_varieties, tensor_varieties
from tests.scale.piece_processes import with_small_files
from tests.scale.test_sharded import largest_gap

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MODULE = "tests.scale.piece_processes"
ADAPTED = "adapters,adapter_critic,adapters_on_trunk"
RUNS = {
    "fsdp": (2, f"llama,{ADAPTED},whole_reference,critics,mixture,recurrent,bfloat16"),
    "hsdp": (4, "llama"),
    "tensor": (2, "llama,tied,phi3,mixture,adapters"),
    "experts": (2, "mixture"),
    "both": (4, "llama,phi3"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Every run, saved in pieces and whole, by layout."""
    base = tmp_path_factory.mktemp("saved")
    for kind, (ranks, names) in RUNS.items():
        (base / kind).mkdir()
        done = two_ranks.start(MODULE, base / kind, kind, names, ranks=ranks, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    return base


def whole_training(checkpoint):
    """All tensors of a checkpoint's training state by network and name."""
    found = {}
    for file in checkpoint.glob("training/*.safetensors"):
        if file.stem not in ("first_answers", "ahead"):
            found |= {f"{file.stem}/{name}": tensor for name, tensor in load_file(file).items()}
    pieces = checkpoint / "training" / "pieces"
    if pieces.exists():
        stored = StoredTensors.open(pieces)
        found |= stored.whole(stored.entries)
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert one
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name]), name


def folder_weights(folder):
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, (_, names) in RUNS.items() for name in names.split(",")]
)
def test_it_holds_the_bits_of_a_whole_checkpoint(saved, kind, name):
    pieces, whole = (saved / kind / form / name / "checkpoint-2" for form in ("pieces", "whole"))
    assert (check_whole(pieces).layout, check_whole(whole).layout) == ("pieces", "whole")
    assert_same(whole_training(pieces), whole_training(whole))
    for place in (".", ".."):
        folders = [path for path in sorted((whole / place).glob("*")) if (path / "config.json").exists()
                   or (path / "adapter_config.json").exists()]  # fmt: skip
        assert folders
        for folder in folders:
            same = pieces / place / folder.name
            assert_same(folder_weights(same), folder_weights(folder))
            for file in folder.glob("*.json"):
                if "index" not in file.name:
                    assert json.loads((same / file.name).read_text()) == json.loads(file.read_text()), file
    assert_opens(pieces.parent / "policy", whole.parent / "policy")
    assert_nothing_is_left(pieces)


def assert_opens(folder, other):
    """By plain transformers, with every weight of the other."""
    ours, theirs = (AutoModelForCausalLM.from_pretrained(place, dtype="auto").state_dict() for place in (folder, other))
    assert_same(ours, theirs)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert {folder / file for file in index["weight_map"].values()} == set(folder.glob("*.safetensors"))


def assert_nothing_is_left(checkpoint):
    run = checkpoint.parent
    assert not [path for path in (*run.iterdir(), *checkpoint.iterdir()) if path.name.startswith(".check")]
    assert not (checkpoint / ".frozen").exists()


def test_each_process_writes_its_share(saved):
    for kind, (ranks, _) in RUNS.items():
        sizes = {}
        for file in (saved / kind / "pieces" / RUNS[kind][1].split(",")[0] / "checkpoint-2").rglob("shard-*"):
            sizes[file.name[:11]] = sizes.get(file.name[:11], 0) + file.stat().st_size
        assert len(sizes) == ranks
        assert max(sizes.values()) < 1.3 * sum(sizes.values()) / ranks, (kind, sizes)


GONE_ON = [("fsdp", "llama", "fsdp", 4), ("fsdp", "adapters", "tensor", 2), ("fsdp", "adapters", "fsdp", 4),
           ("both", "llama", "fsdp", 2), ("both", "phi3", "fsdp", 2), ("tensor", "mixture", "experts", 2),
           ("fsdp", "mixture", "tensor", 2), ("fsdp", "recurrent", "fsdp", 4),
           ("fsdp", "llama", "fsdp", 2)]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "then", "ranks"), GONE_ON)
def test_a_run_goes_on_in_another_layout_as_from_a_whole_checkpoint(saved, tmp_path, kind, name, then, ranks):
    """The same bits as from a whole one; on the same layout those of the run that was not broken."""
    done = two_ranks.start(MODULE, tmp_path, then, name, saved / kind, ranks=ranks, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = (tmp_path / form / name for form in ("pieces", "whole"))
    assert largest_gap(ours, theirs) == 0.0
    assert_same(whole_training(ours / "checkpoint-2"), whole_training(theirs / "checkpoint-2"))
    gap = 0.0 if (kind, ranks) == (then, 2) else varieties(kind)[name].gap
    assert largest_gap(saved / kind / "pieces" / name, ours) <= gap


@pytest.mark.parametrize("name", ["llama", "adapters", "mixture", "recurrent"])
def test_a_run_goes_on_on_one_process(saved, tmp_path, name):
    for form in ("pieces", "whole"):
        small = with_small_files(varieties("fsdp")[name])
        sharded_varieties.play(tmp_path / form, small, resume=str(saved / "fsdp" / form / name / "checkpoint-1"))
    assert largest_gap(tmp_path / "pieces", tmp_path / "whole") == 0.0
    assert largest_gap(saved / "fsdp" / "pieces" / name, tmp_path / "pieces") <= varieties("fsdp")[name].gap


def varieties(kind):
    return tensor_varieties.VARIETIES if kind in ("tensor", "experts", "both") else sharded_varieties.VARIETIES


def test_a_process_that_is_killed_while_it_writes_leaves_the_checkpoint_before(tmp_path):
    done = two_ranks.start("tests.scale.piece_faults", tmp_path, "killed", timeout=600)
    assert done.returncode != 0
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-1"]
    assert list(tmp_path.glob(".checkpoint-2.unfinished/training/pieces/*"))
    sharded_varieties.play(tmp_path, with_small_files(varieties("fsdp")["llama"]), resume="auto")
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]
    check_whole(tmp_path / "checkpoint-2")
    assert not list(tmp_path.glob(".checkpoint*"))


def test_a_disk_that_is_full_for_one_process_is_told_by_all_and_the_run_goes_on(tmp_path):
    done = two_ranks.start("tests.scale.piece_faults", tmp_path, "full", timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [folder.name for folder in checkpoints(tmp_path)] == ["checkpoint-1"]
    assert done.stderr.count("saving to") >= 2
    assert done.stderr.count("rank 1: OSError: [Errno 28] No space left on device") >= 2
    assert len(list((tmp_path / "policy").glob("model-*.safetensors"))) > 1
    assert not list(tmp_path.glob(".checkpoint*"))
