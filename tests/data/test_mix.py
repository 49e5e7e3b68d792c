"""Several data sets: whose turn it is, what a batch holds of each, and that nothing but seed and update decides."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.data.mix import weighted_round_robin, weighted_round_robin_between
from nearstep.data.prompt_source import BatchPlan, PromptSource
from nearstep.data.samplers import Passes
from tests.data.making import mix, prompt_set

WEIGHTS = st.lists(st.one_of(st.integers(1, 50).map(float), st.floats(0.01, 5)), min_size=1, max_size=4)


@settings(max_examples=80)
@given(weights=WEIGHTS, first=st.integers(0, 300))
def test_any_turn_is_found_without_those_before_it(weights, first):
    from_the_start = list(islice(weighted_round_robin(weights), first + 20))
    assert weighted_round_robin_between(weights, first, 20) == from_the_start[first:]


@settings(max_examples=80)
@given(weights=WEIGHTS, first=st.integers(0, 100), count=st.integers(1, 200))
def test_every_run_of_turns_holds_each_source_in_its_share(weights, first, count):
    had = Counter(source for source, _ in weighted_round_robin_between(weights, first, count))
    for source, weight in enumerate(weights):
        assert abs(had[source] - count * weight / sum(weights)) <= len(weights)


def test_turns_worked_out_by_hand():
    # Weights 2 and 1: the turns of the first come at ¼, ¾, 1¼ …, those of the second at ½, 1½ …
    assert weighted_round_robin_between([2.0, 1.0], 0, 6) == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    assert [source for source, _ in weighted_round_robin_between([1.0] * 3, 0, 6)] == [0, 1, 2, 0, 1, 2]


def letters(letter, count, **more):
    return prompt_set([{"prompt": f"{letter}{number}", **more} for number in range(count)])


def source(*sets, weights=None, shuffle=True, **options):
    return PromptSource(
        mix(*sets, weights=weights), BatchPlan(**{"seed": 3, "batch_size": 6, **options}), Passes(shuffle)
    )


def played(prompts, updates):
    return [text for batch in prompts.batches(after=0, until=updates) for text in batch.inputs]


def test_sizes_are_the_weights_where_none_are_given_so_that_every_prompt_comes_once_in_a_pass():
    prompts = source(letters("a", 8), letters("b", 3), letters("c", 1))
    texts = played(prompts, 6)
    assert [Counter(texts[start : start + 12]) for start in (0, 12, 24)] == [Counter(texts[:12])] * 3
    assert set(Counter(texts).values()) == {3}


def test_every_batch_holds_the_sets_by_their_weights():
    prompts = source(letters("a", 5), letters("b", 50), weights=(1.0, 2.0))
    for batch in prompts.batches(after=0, until=9):
        assert Counter(text[0] for text in batch.inputs) == {"a": 2, "b": 4}


def test_each_set_has_passes_of_its_own():
    texts = [
        text for text in played(source(letters("a", 3), letters("b", 50), weights=(1.0, 1.0)), 6) if text[0] == "a"
    ]
    assert [sorted(texts[start : start + 3]) for start in range(0, 18, 3)] == [["a0", "a1", "a2"]] * 6
    assert len({tuple(texts[start : start + 3]) for start in range(0, 18, 3)}) > 1


def test_columns_are_those_of_any_set():
    batch = source(letters("a", 2, x=1), letters("b", 2, y=2), shuffle=False, batch_size=4).batch(1)
    assert batch.inputs == ["a0", "b0", "a1", "b1"]
    assert batch.columns == {"x": [1, None, 1, None], "y": [None, 2, None, 2]}


@settings(max_examples=40)
@given(
    weights=st.tuples(st.floats(0.1, 5), st.floats(0.1, 5)), update=st.integers(1, 9),
    world_size=st.integers(1, 4), num_generations=st.integers(1, 3),
)  # fmt: skip
def test_a_batch_depends_on_seed_and_update_alone_over_any_number_of_ranks(
    weights, update, world_size, num_generations
):
    options = {"batch_size": 6 * num_generations, "num_generations": num_generations, "weights": weights}
    sets = letters("a", 3), letters("b", 4)
    whole = source(*sets, **options).batch(update)
    parts = [source(*sets, **options, rank=rank, world_size=world_size).batch(update) for rank in range(world_size)]
    assert [text for part in parts for text in part.inputs] == whole.inputs
    assert [episode for part in parts for episode in part.episodes] == whole.episodes
    assert whole.inputs == [text for text in whole.inputs[::num_generations] for _ in range(num_generations)]


def test_order_of_the_rows_where_nothing_is_shuffled():
    assert played(source(letters("a", 4), shuffle=False), 1) == ["a0", "a1", "a2", "a3", "a0", "a1"]


def test_a_subset_keeps_order_places_and_weights():
    whole = mix(letters("a", 3), letters("b", 3), letters("c", 1), weights=(1.0, 2.0, 3.0))
    part = whole.subset([6, 0, 2])
    assert part.take([0, 1, 2], [0, 1, 2]).inputs == ["a0", "a2", "c0"]
    assert part.weights == (1.0, 3.0)
    assert part.sets[0].position(1) == "row index 2"


@pytest.mark.parametrize("world_size", [1, 3])
def test_evaluation_runs_over_all_sets_in_order(world_size):
    both = mix(letters("a", 3), letters("b", 2))
    by_rank = [list(both.in_order(4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    texts = [text for chunk in zip(*by_rank, strict=True) for share in chunk for text in share.inputs]
    assert texts == ["a0", "a1", "a2", "b0", "b1"]
