"""Samplers: quotas and pools by hand, and what a source makes of a sampler of the user's."""

import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.common.errors import TrainingError
from nearstep.common.random_streams import stream
from nearstep.data.prompt_source import BatchPlan, PromptSource
from nearstep.data.samplers import DifficultyPools, Draw, Passes, quotas
from tests.data.making import mix, prompt_set


def wanted(count, first=0, prompts=10, seed=0):
    return Draw(count, first, (prompts,), (float(prompts),), seed, stream(seed, "sampler", first))


@pytest.mark.parametrize(("sizes", "weights", "count", "expected"), [
    ([10, 10, 10, 10], [1.0, 4.0, 1.0, 4.0], 10, [1, 4, 1, 4]),
    ([10, 10], [1.0, 2.0], 4, [1, 3]),  # 1.33 and 2.67: the greater remainder is rounded up
    ([10, 10], [1.0, 1.0], 3, [2, 1]),  # a tie: the first
    ([10, 1, 10], [1.0, 1.0, 2.0], 8, [2, 1, 5]),  # the second has one; of what it leaves a third and two thirds
    ([0, 5], [3.0, 1.0], 4, [0, 4]),
    ([5, 2], [0.0, 1.0], 4, [2, 2]),  # no weight: only what no other can give
    ([3, 4], [1.0, 1.0], 9, [3, 4]),  # all that there are
])  # fmt: skip
def test_quotas_by_hand(sizes, weights, count, expected):
    assert quotas(sizes, weights, count) == expected


@settings(max_examples=100)
@given(
    pools=st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 0.3, 1.0, 7.0])), min_size=1, max_size=5),
    count=st.integers(0, 20),
)
def test_quotas_give_what_is_wanted_and_no_more_than_there_is(pools, count):
    sizes, weights = [size for size, _ in pools], [weight for _, weight in pools]
    found = quotas(sizes, weights, count)
    assert sum(found) == min(count, sum(sizes))
    assert all(0 <= given <= size for given, size in zip(found, sizes, strict=True))


def test_pools_by_the_mean_last_seen_by_hand():
    """Ten prompts: 0 and 1 hard, 2 to 5 between, 6 at the upper border, 7 to 9 not seen."""
    sampler = DifficultyPools((0.2, 0.8), (1.0, 2.0, 0.0, 1.0))
    sampler.choose(wanted(1))
    sampler.seen([0, 1, 2, 3, 4, 5, 6, 7], [0.0, 0.9, 0.2, 0.5, 0.5, 0.79, 0.8, math.nan])
    sampler.seen([1], [0.1])  # its newest mean counts
    assert sampler.metrics() == {"pool_1": 0.2, "pool_2": 0.4, "pool_3": 0.1, "unseen": pytest.approx(0.3)}
    for first in range(20):
        drawn = sampler.choose(wanted(4, first))
        assert len(set(drawn)) == 4
        kinds = Counter("hard" if n < 2 else "between" if n < 6 else "easy" if n == 6 else "unseen" for n in drawn)
        assert kinds == {"hard": 1, "between": 2, "unseen": 1}
    assert {number for first in range(20) for number in sampler.choose(wanted(4, first))} == set(range(10)) - {6}


def test_pools_give_every_prompt_once_before_any_twice_where_more_are_wanted_than_there_are():
    assert sorted(Counter(DifficultyPools().choose(wanted(25))).values()) == [2] * 5 + [3] * 5


def test_what_pools_know_is_plain_and_comes_back():
    one, other = DifficultyPools(), DifficultyPools()
    one.choose(wanted(3))
    one.seen([4, 2], [0.5, 1 / 3])
    assert one.state_dict() == {"prompts": 10, "numbers": [2, 4], "means": [1 / 3, 0.5]}
    other.load_state_dict(one.state_dict())
    assert other.choose(wanted(6, 3)) == one.choose(wanted(6, 3))
    one.seen([0], [1.0])
    assert other.metrics() != one.metrics()


@dataclass
class Backwards:
    """From the last prompt to the first; it notes what it is told."""

    told: list = field(default_factory=list)

    def choose(self, draw):
        return [(draw.prompts - 1 - draw.first - number) % draw.prompts for number in range(draw.count)]

    def seen(self, numbers, means):
        self.told.append((numbers, means))


def source(sampler, **options):
    rows = [{"prompt": f"prompt {number}", "number": number} for number in range(7)]
    return PromptSource(mix(prompt_set(rows)), BatchPlan(**{"seed": 0, "batch_size": 4, **options}), sampler)


def numbers(prompts):
    return prompts.columns["number"]


def test_a_sampler_is_told_of_the_prompts_it_drew():
    played = source(Backwards())
    batches = played.batches(after=0, until=2)
    assert numbers(next(batches)) == [6, 5, 4, 3]
    played.seen([0.0, 0.5, 1.0, math.nan])
    assert numbers(played.more([1, 3])) == [2, 1]
    played.seen([0.25, 0.75])
    assert numbers(next(batches)) == [0, 6, 5, 4]
    assert played.sampler.told[1] == ([2, 1], [0.25, 0.75])
    assert played.sampler.told[0][0] == [6, 5, 4, 3]


@settings(max_examples=60)
@given(
    world_size=st.integers(1, 5),
    num_generations=st.integers(1, 3),
    places=st.sets(st.integers(0, 3), min_size=1).map(sorted),
)
def test_further_prompts_over_any_number_of_ranks(world_size, num_generations, places):
    """Rows of the same places on the same ranks, and new numbers for the episodes, whatever the ranks."""

    def rows(rank, of):
        options = {"batch_size": 4 * num_generations, "num_generations": num_generations}
        played = source(Passes(), **options, rank=rank, world_size=of)
        first = next(played.batches(after=0, until=1))
        more = played.more(places)
        return list(zip(first.episodes, numbers(first), strict=True)), list(
            zip(more.episodes, numbers(more), strict=True)
        )

    whole = rows(0, 1)
    parts = [rows(rank, world_size) for rank in range(world_size)]
    for kind in (0, 1):
        assert [row for part in parts for row in part[kind]] == whole[kind]
    episodes = [episode for kind in (0, 1) for episode, _ in whole[kind]]
    assert episodes == list(range((4 + len(places)) * num_generations))
    for rank, (first, more) in enumerate(parts):
        own = [episode for episode, _ in first if episode // num_generations in places]
        assert len(own) == len(more), f"rank {rank}"


def test_a_run_goes_on_at_the_place_where_it_stood():
    unbroken = source(Passes())
    batches = unbroken.batches(after=0, until=3)
    next(batches)
    unbroken.more([0, 2, 3])
    later = [next(batches), next(batches)]
    assert list(source(Passes()).batches(after=1, until=3, played=7)) == later


@pytest.mark.parametrize(("found", "said"), [
    ([0, 1, 2], "choose gave 3 numbers for a draw of 4 prompts"),
    ([0, 1, 2, 7], "choose gave 7, and prompts have the numbers 0 to 6"),
    ([0, 1, 2, -1], "choose gave -1, and"),
    ([0, 1, 2, 1.0], r"choose gave 1.0 \(float\); give whole numbers"),
])  # fmt: skip
def test_numbers_that_are_none_are_named(found, said):
    @dataclass
    class Wrong:
        def choose(self, draw):
            return found

    with pytest.raises(TrainingError, match=f"sampler Wrong: {said}"):
        source(Wrong()).batch(1)
