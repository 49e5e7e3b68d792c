"""Layers that several processes compute together, also in pieces and in copies, give the numbers of one process."""

import pytest
from transformers import AutoModelForCausalLM

from tests import two_ranks
from tests.scale import tensor_varieties
from tests.scale.tensor_varieties import VARIETIES
from tests.scale.test_sharded import largest_gap
from tests.scale.test_two_processes import lines

pytestmark = pytest.mark.slow

SOME = ("llama", "qwen3")
LAYOUTS = {
    "tp_of_2": (2, (2,), tuple(VARIETIES)),
    "tp_of_4": (4, (4,), SOME),
    "tp_2_times_fsdp_2": (4, (2, 2), (*SOME, "adapters", "mixture", "experts", "bfloat16")),
    "tp_2_in_2_copies": (4, (2, 1, 2), SOME),
}
SAVED = ("llama", "adapters")


ALIKE = {"checkpointing": "qwen3", "whole_critic": "qwen3", "experts": "mixture"}  # what is another run on one process


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Every run on one process."""
    base = tmp_path_factory.mktemp("one")
    for name, variety in VARIETIES.items():
        if name in ALIKE:
            (base / name).symlink_to(base / ALIKE[name])
        else:
            tensor_varieties.play(base / name, variety)
    return base


@pytest.mark.parametrize(("ranks", "tensor", "shard"), [(2, 2, 1), (4, 4, 1), (4, 2, 2), (4, 2, 1)])
def test_logits_and_gradients_of_families(ranks, tensor, shard):
    """Of two passes whose gradients add up, on rows that each share has of its own."""
    done = two_ranks.start("tests.scale.divided_networks", tensor, shard, ranks=ranks, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def layouts(one, tmp_path_factory):
    base = tmp_path_factory.mktemp("layouts")
    for layout, (ranks, degrees, names) in LAYOUTS.items():
        folder = base / layout
        folder.mkdir()
        resumed = one / "llama" / "checkpoint-1" if layout == "tp_of_2" else ""
        done = two_ranks.start(
            "tests.scale.tensor_varieties", folder, ",".join(names), resumed, *degrees, ranks=ranks, timeout=1800
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return base


@pytest.mark.parametrize("name", VARIETIES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_variety(one, layouts, layout, name):
    if name not in LAYOUTS[layout][2]:
        pytest.skip(f"{name} is not run on {layout}")
    assert largest_gap(one / name, layouts / layout / name) <= VARIETIES[name].gap
    episodes = (lines(base / name / "metrics.jsonl") for base in (one, layouts / layout))
    # Every episode is counted once, and sampled alike; but sums over processes round otherwise in bfloat16, and so may
    # a token be drawn otherwise.
    sampled = ("objective/scores", "val/num_eos_tokens", "rollout/length")
    metrics = ("episode",) if name in ("bfloat16", "autocast") else ("episode", *sampled)
    for first, second in zip(*episodes, strict=True):
        for metric in metrics:
            if metric in first:
                assert first[metric] == pytest.approx(second[metric], rel=1e-3, abs=1e-6), metric


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_goes_on_on_one_process_and_opens_by_itself(one, layouts, layout, tmp_path):
    for name in SAVED:
        if name not in LAYOUTS[layout][2]:
            continue
        saved = layouts / layout / name / "checkpoint-1"
        tensor_varieties.play(tmp_path / name, VARIETIES[name], resume=str(saved))
        assert largest_gap(one / name, tmp_path / name) <= VARIETIES[name].gap
        places = (base / name / "policy" for base in (one, layouts / layout))
        expected, found = (AutoModelForCausalLM.from_pretrained(place) for place in places)
        theirs = found.state_dict()
        for weight, value in expected.state_dict().items():
            assert (value.double() - theirs[weight].double()).abs().max() <= VARIETIES[name].gap, f"{name}: {weight}"


def test_what_one_process_saved_goes_on_on_two(one, layouts):
    assert largest_gap(one / "llama", layouts / "tp_of_2" / "resumed") <= VARIETIES["llama"].gap


def test_rewards_are_asked_once_for_each_row(layouts):
    """Three updates of nine episodes, whichever process asks."""
    asked = (layouts / "tp_of_2" / "asked.txt").read_text().split()
    assert sum(map(int, asked)) == 27
