"""Rows that lie over processes (sp_size) train as on one: families, adapters, critics, with pieces of weights."""

import pytest

from tests import two_ranks
from tests.scale import sharded_varieties
from tests.scale.sequence_processes import VARIETIES
from tests.scale.test_sharded import largest_gap

pytestmark = pytest.mark.slow

LAYOUTS = {"sp_of_2": (2, 2, 1), "sp_of_4": (4, 4, 1), "dp_2_times_sp_2": (4, 2, 1), "fsdp_2_and_sp_2": (2, 2, 2)}
ON_FEW = ("gpt2", "qwen3", "neox", "checkpointing", "one_trunk")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Every run on one process."""
    base = tmp_path_factory.mktemp("one")
    for name, variety in VARIETIES.items():
        sharded_varieties.play(base / name, variety)
    return base


@pytest.fixture(scope="module")
def layouts(one, tmp_path_factory):
    """Varieties on every layout: all of them on two processes, some elsewhere."""
    base = tmp_path_factory.mktemp("layouts")
    for layout, (ranks, size, shard) in LAYOUTS.items():
        names = VARIETIES if layout == "sp_of_2" else ON_FEW
        (base / layout).mkdir()
        done = two_ranks.start(
            "tests.scale.sequence_processes", base / layout, ",".join(names), size, shard, ranks=ranks, timeout=1200
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return base


@pytest.mark.parametrize("name", VARIETIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_those_of_one_process(one, layouts, layout, name):
    if not (layouts / layout / name).exists():
        pytest.skip(f"{name} is not run on {layout}")
    assert largest_gap(one / name, layouts / layout / name) <= VARIETIES[name].gap


def test_saved_on_two_goes_on_on_one_and_the_other_way(one, layouts, tmp_path):
    saved = layouts / "sp_of_2" / "llama" / "checkpoint-1"
    sharded_varieties.play(tmp_path / "llama", VARIETIES["llama"], resume=str(saved))
    assert largest_gap(one / "llama", tmp_path / "llama") <= VARIETIES["llama"].gap
    done = two_ranks.start(
        "tests.scale.sequence_processes", tmp_path / "two", "llama", 2, 1, one / "llama" / "checkpoint-1", timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert largest_gap(one / "llama", tmp_path / "two" / "llama") <= VARIETIES["llama"].gap


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recurrent", "MambaModel runs on padded rows"),
        ("longrope", "rotary positions that depend on how long a row is"),
        ("three_heads", "has 3 attention heads, which cannot be dealt to 2 processes: give a number that divides 3"),
    ],
)
def test_what_cannot_be_dealt_is_refused_with_what_to_do(tmp_path, name, words):
    done = two_ranks.start("tests.scale.sequence_processes", tmp_path, name, 2)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Leave sp_size out" in done.stderr
