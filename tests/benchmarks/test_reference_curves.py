"""The demo and every recipe learn as they did: a run of each, under a new seed, lies in the bands that ship."""

from pathlib import Path

import pytest
import torch
from benchmarks.reference_curves import METRICS, bands, names, outside, play, read

from nearstep.demo.prepare import DemoScale, prepare_world

SEED = 7  # none of those that the bands were made with


def test_bands_by_hand():
    def curves(first):
        return {metric: [first, 1.0, 1.0] for metric in METRICS}

    runs = [curves(value) for value in (1.0, 2.0, 3.0)]
    reference = bands(runs)
    assert reference["objective/scores"][0] == {"mean": 2.0, "std": 1.0}
    # √(5² + 0.15²) is a little above 5; where seeds agree the band is what stands beside the metric.
    assert outside(curves(6.9), reference) == []
    told = outside({**runs[0], "objective/scores": [1.0, 1.2, 1.0]}, reference)
    assert told == ["objective/scores, third 2: 1.2 is not in 1 ± 0.15"]


def test_there_is_a_curve_of_the_demo_and_of_every_recipe():
    assert list(read()) == names()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The demo's world, made anew."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    prepare_world(folder, seed=0, scale=DemoScale(), say=lambda line: None)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", names())
def test_it_learns_as_it_did(world, name):
    assert outside(play(name, world, SEED), read()[name]) == []
