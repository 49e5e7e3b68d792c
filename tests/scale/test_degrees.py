"""How many processes make up a copy of the networks: what is given must come out at the number there is."""

import pytest

from nearstep import PPOConfig
from nearstep.common.errors import ConfigError
from nearstep.config.parallel_rules import check_tensor_parallel
from nearstep.scale.degrees import Degrees


@pytest.mark.parametrize(
    ("given", "processes", "expected"),
    [
        ({}, 1, (1, 1)),
        ({}, 4, (4, 1)),
        ({"dp_shard": 2}, 2, (1, 2)),
        ({"dp_shard": 2}, 8, (4, 2)),
        ({"dp_shard": -1}, 6, (1, 6)),
        ({"dp_shard": -1, "dp_replicate": 2}, 6, (2, 3)),
        ({"dp_shard": 4, "dp_replicate": 2}, 8, (2, 4)),
        ({"dp_replicate": 3}, 3, (3, 1)),
    ],
)
def test_copies_and_pieces(given, processes, expected):
    found = Degrees.of(PPOConfig(**given), processes)
    assert (found.replicate, found.shard) == expected


@pytest.mark.parametrize(
    ("given", "processes", "expected"),
    [
        ({"tp_size": 2}, 2, (1, 1, 2, 1)),
        ({"tp_size": 2}, 8, (4, 1, 2, 1)),
        ({"tp_size": 2, "dp_shard": -1}, 8, (1, 4, 2, 1)),
        ({"tp_size": 2, "dp_shard": 2, "ep_size": 2}, 8, (2, 2, 2, 2)),
        ({"tp_size": 4, "dp_shard": -1, "dp_replicate": 2}, 16, (2, 2, 4, 1)),
    ],
)
def test_layers_are_divided_inside_of_pieces(given, processes, expected):
    found = Degrees.of(PPOConfig(**given), processes)
    assert (found.replicate, found.shard, found.tensor, found.experts) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"engine": "continuous_batching"}, "engine = continuous_batching with tp_size = 2: it takes whole weights"),
        ({"decode_graphs": True}, "decode_graphs with tp_size = 2"),
        ({"max_staleness": 1}, "max_staleness with tp_size = 2"),
    ],
)
def test_what_does_not_go_with_divided_layers_is_refused(given, words):
    check_tensor_parallel(PPOConfig(tp_size=2))
    with pytest.raises(ConfigError, match=words):
        check_tensor_parallel(PPOConfig(tp_size=2, **given))


@pytest.mark.parametrize(
    ("given", "processes", "words"),
    [
        ({"tp_size": 2}, 1, "tp_size = 2 with 1 process: dp_replicate × dp_shard × tp_size must be the number"),
        ({"tp_size": 2}, 3, "tp_size = 2 with 3 processes"),
        ({"tp_size": 2, "dp_shard": 4}, 4, "dp_shard = 4 and tp_size = 2 with 4 processes"),
        ({"tp_size": 2, "ep_size": 4}, 4, "ep_size = 4 with tp_size = 2: .* Give both the same number"),
        ({"ep_size": 2, "dp_shard": 2}, 2, "ep_size = 2 with tp_size = 1"),
        ({"dp_shard": 2}, 1, "dp_shard = 2 with 1 process: dp_replicate × dp_shard must be the number of processes"),
        ({"dp_shard": 3}, 4, "dp_shard = 3 with 4 processes"),
        ({"dp_shard": 2, "dp_replicate": 2}, 8, "dp_shard = 2 and dp_replicate = 2 with 8 processes"),
        ({"dp_shard": 0}, 2, "dp_shard = 0"),
        ({"dp_shard": -1, "dp_replicate": 4}, 6, "dp_replicate = 4 with 6"),
        ({"dp_replicate": 2}, 4, "dp_replicate = 2 with 4"),
        ({"dp_shard": -1, "dp_replicate": 4}, 2, "torchrun --nproc_per_node"),
    ],
)
def test_what_does_not_come_out_is_refused(given, processes, words):
    with pytest.raises(ConfigError, match=words):
        Degrees.of(PPOConfig(**given), processes)
