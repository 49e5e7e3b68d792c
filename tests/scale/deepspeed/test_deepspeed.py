"""ZeRO-2 and ZeRO-3 give the numbers of one process, and their checkpoints go on anywhere: `make deepspeed`."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import two_ranks
from tests.scale.deepspeed import runs
from tests.scale.deepspeed.runs import VARIETIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("deepspeed") is None,
        reason="DeepSpeed is not installed: `make deepspeed` makes a place for it",
    ),
]

LAYOUTS = [(2, 2), (3, 2), (2, 4), (3, 4)]
ON_FOUR = ("llama", "tied")  # the others on two
SAVED = [name for name, variety in VARIETIES.items() if "save_steps" in variety.settings]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("deepspeed")


@pytest.fixture(scope="module")
def one(base):
    """Every run on one process, without DeepSpeed."""
    for name, variety in VARIETIES.items():
        runs.play(base / "one" / name, variety)
    return base / "one"


@pytest.fixture(scope="module")
def many(base):
    """Every run under each stage, on two processes; some on four."""
    for stage, ranks in LAYOUTS:
        names = ON_FOUR if ranks == 4 else VARIETIES
        launched(base / f"zero{stage}_of_{ranks}", names, stage, ranks)
    return base


def launched(folder, names, stage="", ranks=2, resume=""):
    done = two_ranks.start(
        "tests.scale.deepspeed.runs", folder, ",".join(names), stage, resume, ranks=ranks, timeout=3000
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def largest_gap(expected: Path, found: Path) -> float:
    """Of any weight of policy or critic, as the folders of two finished runs have them."""
    gaps = []
    for role in ("policy", "value"):
        ours, theirs = (load_file(run / role / "model.safetensors") for run in (found, expected))
        assert ours.keys() == theirs.keys()
        assert {name: weight.dtype for name, weight in ours.items()} == {n: w.dtype for n, w in theirs.items()}
        gaps += [float((ours[name].double() - theirs[name].double()).abs().max()) for name in ours]
    return max(gaps)


@pytest.mark.parametrize("name", VARIETIES)
@pytest.mark.parametrize(("stage", "ranks"), LAYOUTS)
def test_weights_after_three_updates_are_those_of_one_process(one, many, stage, ranks, name):
    found = many / f"zero{stage}_of_{ranks}" / name
    if not found.exists():
        pytest.skip(f"{name} is run on two processes")
    assert largest_gap(one / name, found) <= VARIETIES[name].gap
    for first, second in zip(*(lines(run / name) for run in (one, found.parent)), strict=True):
        for number in ("objective/scores", "policy/grad_norm", "value/grad_norm", "eval/objective/scores"):
            if number not in first:  # no evaluation
                assert number not in second
                continue
            near = pytest.approx(first[number], rel=30 * VARIETIES[name].gap + 1e-3, abs=1e-5)
            assert second.get(number) == near, number


def lines(run: Path):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [2, 3])
def test_a_checkpoint_goes_on_on_one_process_and_on_four(one, many, stage, tmp_path):
    saved = many / f"zero{stage}_of_2"
    for name in SAVED:
        runs.play(tmp_path / "one" / name, VARIETIES[name], resume=str(saved / name / "checkpoint-1"))
        assert largest_gap(one / name, tmp_path / "one" / name) <= VARIETIES[name].gap, name
    four = launched(tmp_path / "four", SAVED, stage, 4, saved)
    for name in SAVED:
        assert largest_gap(one / name, four / name) <= VARIETIES[name].gap, name


def test_a_checkpoint_of_one_process_goes_on_under_deepspeed(one, tmp_path):
    for stage in (2, 3):
        folder = launched(tmp_path / str(stage), SAVED, stage, 2, one)
        for name in SAVED:
            assert largest_gap(one / name, folder / name) <= VARIETIES[name].gap, f"{stage}: {name}"


def test_a_checkpoint_holds_whole_tensors_by_the_same_names(one, many):
    for stage in (2, 3):
        for role in ("policy", "value"):
            file = Path("checkpoint-1") / "training" / f"{role}.safetensors"
            ours, theirs = (load_file(run / "llama" / file) for run in (many / f"zero{stage}_of_2", one))
            assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
            assert all(torch.allclose(ours[name].float(), theirs[name].float(), atol=1e-5) for name in ours)
