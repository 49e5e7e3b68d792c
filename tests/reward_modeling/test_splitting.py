"""What is kept from training: whole prompts, the same ones every time, about the share that was asked for."""

from hypothesis import given
from hypothesis import strategies as st

from nearstep.reward_modeling.splitting import FEW_PROMPTS, hold_out


def split(prompts, share, seed=0):
    return hold_out(list(range(len(prompts))), prompts, share, seed=seed)


@given(st.lists(st.integers(0, 60), min_size=1, max_size=200), st.floats(0, 0.9), st.integers(0, 5))
def test_a_partition_in_order_with_something_to_learn_from(numbers, share, seed):
    prompts = [str(number) for number in numbers]
    train, kept = split(prompts, share, seed)
    assert sorted([*train, *kept]) == list(range(len(prompts)))
    assert train == sorted(train)
    assert train
    if len(set(prompts)) >= FEW_PROMPTS:
        assert not {prompts[each] for each in train} & {prompts[each] for each in kept}


def test_about_the_share_and_by_seed_alone():
    prompts = [str(number // 4) for number in range(400)]
    train, kept = split(prompts, 0.1)
    assert len(kept) == 40
    assert split(prompts, 0.1) == (train, kept)
    assert split(prompts, 0.1, seed=1) != (train, kept)


def test_few_prompts_are_on_both_sides():
    train, kept = split(["one prompt"] * 100, 0.2)
    assert (len(train), len(kept)) == (80, 20)


def test_nothing_is_kept_where_nothing_shall_be():
    assert split(["a", "b"], 0.0) == ([0, 1], [])
