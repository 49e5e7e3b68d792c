"""Networks in pieces (FSDP2, HSDP) give the numbers of one process: kinds of runs, of models, of adapters, of types."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests import two_ranks
from tests.scale import sharded_varieties, two_processes
from tests.scale.sharded_varieties import VARIETIES
from tests.scale.test_two_processes import PLACES, WALL_CLOCK, lines

pytestmark = pytest.mark.slow

LAYOUTS = {"fsdp_of_2": (2, 2, ""), "fsdp_of_4": (4, 4, ""), "hsdp_of_2_times_2": (4, 2, 2)}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Every run on one process."""
    base = tmp_path_factory.mktemp("one")
    two_processes.play_all(base)
    for name, variety in VARIETIES.items():
        sharded_varieties.play(base / name, variety)
    return base


def largest_gap(expected, found):
    one, pieces = torch.load(expected / "weights.pt"), torch.load(found / "weights.pt")
    assert one.keys() == pieces.keys()
    gaps = {}
    for model, state in one.items():
        assert state.keys() == pieces[model].keys()
        gaps |= {f"{model}: {name}": float((state[name] - pieces[model][name]).abs().max()) for name in state}
    return max(gaps.values())


def test_every_kind_of_run_on_two_processes_in_float64(one, tmp_path):
    done = two_ranks.start(
        "tests.scale.sharded_processes", tmp_path, 2, one / "adapting" / "checkpoint-1", timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for place in [*PLACES, "evaluated"]:
        assert largest_gap(one / place, tmp_path / place) <= 1e-10, place
        for first, second in zip(*(lines(base / place / "metrics.jsonl") for base in (one, tmp_path)), strict=True):
            for name in {name for name in first if not name.startswith("time/")} - {*WALL_CLOCK}:
                assert first[name] == pytest.approx(second[name], rel=1e-9, abs=1e-9), f"{place}: {name}"
    assert largest_gap(one / "adapting", tmp_path / "resumed") <= 1e-10  # from what one process has saved


@pytest.fixture(scope="module")
def layouts(one, tmp_path_factory):
    """Varieties on every layout: all of them on two processes, some on four."""
    base = tmp_path_factory.mktemp("layouts")
    for layout, (ranks, shard, replicate) in LAYOUTS.items():
        names = VARIETIES if ranks == 2 else ("llama", "adapters", "whole_reference", "bfloat16")
        folder = base / layout
        folder.mkdir()
        done = two_ranks.start(
            "tests.scale.sharded_varieties", folder, ",".join(names), shard, replicate, ranks=ranks, timeout=1200
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return base


@pytest.mark.parametrize("name", VARIETIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_variety(one, layouts, layout, name):
    if not (layouts / layout / name).exists():
        pytest.skip(f"{name} is not run on {layout}")
    assert largest_gap(one / name, layouts / layout / name) <= VARIETIES[name].gap


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_opens_by_itself_and_goes_on_on_one_process(one, layouts, layout, tmp_path):
    """Folders of plain models, adapters merged, in the type that the model had; a checkpoint of whole tensors."""
    for name in ("llama", "adapters", "bfloat16"):
        places = [base / name / "policy" for base in (one, layouts / layout)]
        expected, found = (AutoModelForCausalLM.from_pretrained(place) for place in places)
        assert found.dtype == expected.dtype
        for (weight, theirs), (same, ours) in zip(
            expected.state_dict().items(), found.state_dict().items(), strict=True
        ):
            assert weight == same
            assert (theirs.double() - ours.double()).abs().max() <= VARIETIES[name].gap, f"{name}: {weight}"
    for name in ("llama", "adapters"):
        saved = layouts / layout / name / "checkpoint-1"
        sharded_varieties.play(tmp_path / name, VARIETIES[name], resume=str(saved))
        assert largest_gap(one / name, tmp_path / name) <= VARIETIES[name].gap
