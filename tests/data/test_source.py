"""Which prompts an update gets: a pure function of seed and update, the same over any number of ranks."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.common.errors import ConfigError
from nearstep.data.prompt_source import BatchPlan, PromptSource
from nearstep.data.samplers import Passes
from tests.data.making import mix, prompt_set


def source(count=5, **options):
    rows = [{"prompt": f"prompt {number}", "number": number} for number in range(count)]
    return PromptSource(mix(prompt_set(rows)), BatchPlan(**{"seed": 0, "batch_size": 4, **options}))


def numbers(prompts):
    return prompts.columns["number"]


SIZES = {
    "count": st.integers(1, 9),
    "prompts_per_update": st.integers(1, 12),
    "num_generations": st.integers(1, 3),
    "seed": st.integers(0, 3),
    "update": st.integers(1, 6),
}


@settings(max_examples=60)
@given(**SIZES, world_size=st.integers(1, 5))
def test_ranks_together_play_the_whole_batch(count, prompts_per_update, num_generations, seed, update, world_size):
    options = {"seed": seed, "batch_size": prompts_per_update * num_generations, "num_generations": num_generations}
    whole = source(count, **options).batch(update)
    parts = [source(count, **options, rank=rank, world_size=world_size).batch(update) for rank in range(world_size)]
    assert [row for part in parts for row in part.ids] == whole.ids
    assert [row for part in parts for row in part.inputs] == whole.inputs
    assert [row for part in parts for row in numbers(part)] == numbers(whole)
    assert [row for part in parts for row in part.episodes] == whole.episodes
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60)
@given(**SIZES)
def test_batch_depends_on_nothing_but_seed_and_update(count, prompts_per_update, num_generations, seed, update):
    options = {"seed": seed, "batch_size": prompts_per_update * num_generations, "num_generations": num_generations}
    used = source(count, **options)
    for _ in used.batches(after=0, until=3):
        pass
    assert used.batch(update) == source(count, **options).batch(update)
    assert used.batch(update).episodes[0] == (update - 1) * used.plan.batch_size


@settings(max_examples=60)
@given(**SIZES)
def test_every_prompt_is_played_once_per_pass(count, prompts_per_update, num_generations, seed, update):
    played = source(count, seed=seed, batch_size=prompts_per_update * num_generations, num_generations=num_generations)
    rows = [row for batch in played.batches(after=0, until=6) for row in numbers(batch)]
    prompts = rows[::num_generations]
    assert rows == [prompt for prompt in prompts for _ in range(num_generations)]
    passes = [prompts[start : start + count] for start in range(0, len(prompts), count)]
    for whole in passes[: len(prompts) // count]:
        assert sorted(whole) == list(range(count))
    assert max(Counter(passes[-1]).values()) == 1


def test_batches_are_full_over_the_end_of_a_pass():
    # D2, D4: 5 prompts in batches of 4 end their first pass inside the second batch.
    batches = list(source(5, batch_size=4).batches(after=0, until=5))
    assert [len(batch) for batch in batches] == [4] * 5
    assert Counter(row for batch in batches for row in numbers(batch)) == dict.fromkeys(range(5), 4)


def test_fewer_prompts_than_a_batch_wrap_around_and_this_is_told():
    small = source(3, batch_size=16, num_generations=2)
    assert sorted(Counter(numbers(small.batch(1))).values()) == [4, 6, 6]
    assert small.notes() == ["An update needs 8 prompts and there are 3: prompts repeat within every update."]
    assert source(8, batch_size=16, num_generations=2).notes() == []


def test_order_changes_with_pass_and_seed():
    orders = {
        tuple(numbers(source(20, batch_size=20, seed=seed).batch(update))) for seed in (0, 1) for update in (1, 2)
    }
    assert len(orders) == 4
    assert tuple(range(20)) not in orders


def test_batches_go_on_after_an_update():
    played = source()
    assert list(played.batches(after=2, until=4)) == [played.batch(3), played.batch(4)]
    assert list(played.batches(after=4, until=4)) == []


def test_length_is_that_of_a_pass():
    assert len(source(5)) == 5


def test_batch_that_cannot_hold_whole_groups():
    with pytest.raises(ConfigError, match="batch_size = 5 must be a multiple of num_generations = 2"):
        source(batch_size=5, num_generations=2)


def test_updates_are_counted_from_one():
    with pytest.raises(ValueError, match="counted from 1, not 0"):
        source().batch(0)


@settings(max_examples=60)
@given(count=st.integers(1, 12), chunk_size=st.integers(1, 13), world_size=st.integers(1, 4))
def test_evaluation_covers_every_row_once_in_order_over_all_ranks(count, chunk_size, world_size):
    # D16: evaluation dropped the last rows.
    prompts = source(count).prompts
    by_rank = [list(prompts.in_order(chunk_size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(chunks) for chunks in by_rank} == {-(-count // chunk_size)}
    in_order = [row for chunk in zip(*by_rank, strict=True) for share in chunk for row in numbers(share)]
    assert in_order == list(range(count))
    assert [
        episode for chunk in zip(*by_rank, strict=True) for share in chunk for episode in share.episodes
    ] == in_order


def test_a_pass_is_shuffled_once_and_let_go_when_it_is_over_e11(monkeypatch):
    made = []
    real = Passes._order

    def recording(self, place, number, draw):
        made.append((place, number))
        return real(self, place, number, draw)

    monkeypatch.setattr(Passes, "_order", recording)
    used = source(10, batch_size=4)  # 2.5 updates in a pass
    batches = list(used.batches(after=0, until=6))
    assert made == [(0, 0), (0, 1), (0, 2)]
    assert set(used.sampler._orders) == {(0, 2)}
    assert [numbers(batch) for batch in batches] == [numbers(source(10, batch_size=4).batch(n)) for n in range(1, 7)]
