"""A checkpoint in pieces, by a group of one process: what it holds, what damages it, what is said where it fails."""

import errno
import json

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from nearstep import ConfigError, PPOConfig, TrainingError
from nearstep.checkpoint import piece_saves
from nearstep.checkpoint.contents import CheckpointLabel, WholeContent
from nearstep.checkpoint.export import ModelFolders
from nearstep.checkpoint.piece_files import StoredTensors
from nearstep.checkpoint.piece_saves import PieceSaves
from nearstep.checkpoint.seal import check_whole
from nearstep.checkpoint.snapshot import put_back, read_snapshot, take_snapshot
from nearstep.checkpoint.streamed_folders import StreamedFolders
from nearstep.common.errors import CheckpointError
from nearstep.models.roles import Models, make_policy
from nearstep.scale.backend import RoleNetwork
from nearstep.scale.boxes import Cutter
from nearstep.scale.degrees import Degrees
from nearstep.scale.sharded_backend import ShardedBackend
from nearstep.scale.torch_backend import TorchBackend
from nearstep.training.optimizers import Learners, make_learner
from nearstep.training.state import State
from tests.tiny import byte_tokenizer, tiny_causal_lm

ALONE = TorchBackend(0, 1, torch.device("cpu"))
LABEL = CheckpointLabel(1, "fault", None, {"seed": 1}, {"rows": 2})


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def stepped(model, seed=0):
    """A learner after two steps with gradients of chance."""
    learner = make_learner(model, PPOConfig(optim="adamw_torch"), 1e-3, updates=4)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        for weight in learner.parameters:
            noise = torch.randn(weight.shape, generator=generator)
            if isinstance(weight, DTensor):
                noise = DTensor.from_local(noise, weight.device_mesh, weight.placements, run_check=False)
            weight.grad = noise
        learner.step()
    return learner


def folders_of(model, backend):
    return ModelFolders(
        Models(make_policy(model), None, None), byte_tokenizer(), backend, lambda *given: "card", 50_000
    )


@pytest.fixture(scope="module")
def saves(group):
    """Of a policy in pieces."""
    model = tiny_causal_lm("gpt2")
    backend = ShardedBackend.over(ALONE, Degrees(1, 1))
    folders = folders_of(model, backend)
    backend.spread({"policy": RoleNetwork(model, one_pass=True)})
    learners = Learners(stepped(model), None)
    return PieceSaves(StreamedFolders(folders, backend), learners)


def written(saves, target):
    snapshot = take_snapshot(saves.learners, State(update=1), {})
    saves.content(snapshot, State(update=1)).write(target, LABEL)
    return target


def whole(target):
    """The same policy, steps and state on one process, saved whole."""
    model = tiny_causal_lm("gpt2")
    learners = Learners(stepped(model), None)
    copied = take_snapshot(learners, State(update=1), {}).copied(main=True)
    WholeContent(folders_of(model, ALONE).copied(State(update=1)), copied).write(target, LABEL)
    return learners


def test_it_holds_what_a_whole_one_holds_and_goes_on_whole(saves, tmp_path):
    pieces = written(saves, tmp_path / "checkpoint-1")
    learners = whole(tmp_path / "checkpoint-2")
    assert check_whole(pieces).layout == "pieces"
    names = {path.relative_to(pieces).as_posix() for path in pieces.rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith("training/")} == {
        "training/state.json", "training/pieces/shard-00001-model-00001-of-00001.safetensors"
    }  # fmt: skip
    stored = StoredTensors.open(pieces / "training" / "pieces")
    expected = load_file(tmp_path / "checkpoint-2" / "training" / "policy.safetensors")
    found = stored.whole(stored.entries)
    assert found.keys() == {f"policy/{name}" for name in expected}
    assert all(torch.equal(found[f"policy/{name}"], tensor) for name, tensor in expected.items())
    opened, theirs = (AutoModelForCausalLM.from_pretrained(place / "policy").state_dict()
                      for place in (pieces, tmp_path / "checkpoint-2"))  # fmt: skip
    assert all(torch.equal(opened[name], tensor) for name, tensor in theirs.items())
    fresh = Learners(stepped(tiny_causal_lm("gpt2"), seed=9), None)
    put_back(read_snapshot(pieces / "training"), fresh, State(), "here")
    for one, other in zip(fresh.policy.parameters, learners.policy.parameters, strict=True):
        assert torch.equal(one, other)
        moments = (each.policy.optimizer.state[weight] for each, weight in ((fresh, one), (learners, other)))
        first, second = moments
        assert all(torch.equal(first[name], second[name]) for name in ("exp_avg", "exp_avg_sq", "step"))


def test_a_whole_one_goes_on_in_pieces(saves, tmp_path):
    whole(tmp_path / "checkpoint-1")
    before = [weight.full_tensor().clone() for weight in saves.learners.policy.parameters]
    with torch.no_grad():
        for weight in saves.learners.policy.parameters:
            weight.mul_(2)
    put_back(read_snapshot(tmp_path / "checkpoint-1" / "training"), saves.learners, State(), "here")
    for weight, expected in zip(saves.learners.policy.parameters, before, strict=True):
        assert torch.equal(weight.full_tensor(), expected)


def test_a_flipped_bit_in_a_piece_is_found(saves, tmp_path):
    target = written(saves, tmp_path / "checkpoint-1")
    piece = next(target.rglob("shard-*"))
    content = bytearray(piece.read_bytes())
    content[-5] ^= 1
    piece.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"shard-00001-.* is damaged: its SHA-256"):
        check_whole(target)


@pytest.mark.parametrize("what", ["write_boxes", "own_files"])
def test_a_part_that_cannot_be_written_leaves_no_checkpoint(saves, tmp_path, monkeypatch, what):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(piece_saves, what, full)
    with pytest.raises(OSError, match=r"rank 0: .*No space left"):
        written(saves, tmp_path / "checkpoint-1")
    assert not list(tmp_path.iterdir())


def test_a_disk_of_its_own_is_told(saves, tmp_path, monkeypatch):
    monkeypatch.setattr(piece_saves.files, "make_folder", lambda folder: None)
    with pytest.raises(TrainingError, match=r"rank 0 does not see .*sharded_checkpoints = false"):
        saves.write_models(tmp_path / "run", State())


def test_the_models_at_the_end_leave_no_pieces(saves, tmp_path):
    saves.write_models(tmp_path, State())
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    assert len(list((tmp_path / "policy").glob("model-*-of-*.safetensors"))) > 1


def test_parts_of_two_processes_are_read_by_their_places(tmp_path):
    """Files as torch's writer leaves them: rows 0 to 1 of a matrix in one, row 2 in the other."""
    rows = torch.arange(6.0).view(3, 2)
    for rank, (part, start) in enumerate([(rows[:2], 0), (rows[2:], 2)]):
        where = json.dumps({"a:weight": {"saved_offsets": [start, 0]}})
        name = f"shard-{rank + 1:05}-model-00001-of-00001.safetensors"
        save_file({"a:weight": part.contiguous()}, tmp_path / name, metadata={"DCP_SHARDING_INFO": where})
    stored = StoredTensors.open(tmp_path)
    assert torch.equal(stored.whole(["a:weight"])["a:weight"], rows)
    with pytest.raises(CheckpointError, match="b:weight is missing"):
        stored.require(["a:weight", "b:weight"])
    with pytest.raises(CheckpointError, match="is missing"):
        StoredTensors.open(tmp_path / "nowhere")


def test_whole_tensors_are_shared_out_by_size():
    """Each is written by one process, and all agree which."""
    tensors = {"large": torch.zeros(8), "small": torch.zeros(2), "other": torch.zeros(3), "step": torch.tensor(1.0)}
    found = []
    for place in range(2):
        cutter = Cutter.of(tensors, [frozenset(), frozenset()], place)
        found.append({name for name, tensor in tensors.items() if cutter.own(name, tensor) is not None})
    assert found == [{"large"}, {"small", "other", "step"}]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_shard_size": "much"}, "give a number and a unit"),
        ({"max_shard_size": "0GB"}, "give a number and a unit"),
        ({"sharded_checkpoints": True, "zero_stage": 3}, "DeepSpeed deals weights out in a form of its own"),
    ],
)
def test_settings_that_clash(given, words):
    with pytest.raises(ConfigError, match=words):
        PPOConfig(**given)


def test_a_setting_without_effect_is_told():
    with pytest.warns(UserWarning, match="sharded_checkpoints has no effect where every process holds whole networks"):
        PPOConfig(sharded_checkpoints=True)
