"""Which groups make up a batch: hand-made queues, and simulated runs in which nothing gets too old or is lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.rollout.ahead.window import Choice, GroupUnderWay, StalenessRule, choose


def rule(staleness=1, groups=2, share=1.0, drops=False):
    return StalenessRule(staleness, groups, share, drops)


def under_way(*entries):
    """(number, finished, oldest)"""
    return [GroupUnderWay(*entry) for entry in entries]


STRAGGLER = under_way((0, False, None), (1, True, 1), (2, True, 1), (3, True, 1))


@pytest.mark.parametrize(
    ("share", "window", "batch"),
    [(1.0, 4, (1, 2)), (0.75, 3, (1, 2)), (0.5, 2, None), (0.25, 1, None), (0.01, 1, None)],
)
def test_at_most_one_less_than_the_window_overtake_the_oldest(share, window, batch):
    """B = (1 + 1)·2 = 4; with a window of 2 only prompt 1 may overtake prompt 0, and a batch has two."""
    found = rule(share=share)
    assert (found.capacity, found.window) == (4, window)
    assert choose(STRAGGLER, found, update=1) == Choice(batch)


def test_those_that_have_overtaken_before_count():
    """Prompt 1 has been trained on: prompts 0 and 2 stand in the window, 3 does not."""
    left = [STRAGGLER[0], STRAGGLER[2], STRAGGLER[3]]
    assert choose(left, rule(groups=1, staleness=3, share=0.75), update=1) == Choice((2,))
    assert choose(left[::2], rule(groups=1, staleness=3, share=0.75), update=1) == Choice(None)


def test_one_that_would_get_too_old_is_waited_for_or_left_behind():
    """Sampled by version 1, with max_staleness = 1: update 2 is the last that may train on it."""
    groups = under_way((0, False, 1), (2, True, 2), (3, True, 2))
    assert choose(groups, rule(), update=2) == Choice(None)
    assert choose(groups, rule(drops=True), update=2) == Choice((2, 3), too_old=(0,))
    assert choose(groups, rule(staleness=2), update=2) == Choice((2, 3))
    ended = under_way((0, True, 1), (2, True, 2), (3, True, 2))
    assert choose(ended, rule(), update=2) == choose(ended, rule(drops=True), update=2) == Choice((0, 2))


def test_too_many_for_the_next_update_are_not_put_off():
    """After update 2 two places are left in update 3, and three groups must be trained on by then."""
    groups = under_way((0, False, 2), (1, False, 2), (2, True, 2), (3, False, 2), (4, True, 3))
    assert choose(groups, rule(share=1.0), update=2).batch is None
    groups[1] = GroupUnderWay(1, True, 2)
    assert choose(groups, rule(share=1.0), update=2) == Choice((1, 2))


def test_where_the_first_may_wait_and_others_not_these_come_first():
    """A group of a run that went on: begun anew, so it is younger than those behind it."""
    groups = under_way((0, True, 3), (1, True, 2))
    assert choose(groups, rule(groups=1), update=3) == Choice((1,))


def test_a_queue_that_no_order_keeps_in_time_ends_all_the_same():
    groups = under_way((0, True, 1), (1, True, 1), (2, True, 2))
    assert choose(groups, rule(groups=1), update=2) == Choice((0,), too_old=(1,))


@given(
    staleness=st.integers(1, 3), size=st.integers(1, 4), share=st.sampled_from([0.1, 0.3, 1.0]), drops=st.booleans(),
    slots=st.integers(1, 6), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_in_any_run_nothing_is_trained_on_too_old_or_lost(staleness, size, share, drops, slots, data):
    """Groups begin in their order as slots get free, and end in any order."""
    law = rule(staleness, size, share, drops)
    waiting, begun, finished = [], {}, set()
    trained, dropped, given_out = [], [], 0
    for update in range(1, 6):
        queue = sorted([*waiting, *begun])
        new = range(given_out, given_out + law.capacity - len(queue))
        given_out += len(new)
        waiting += new
        for _ in range(1000):
            while waiting and len(begun) - len(finished) < slots:
                begun[waiting.pop(0)] = update
            groups = [GroupUnderWay(n, n in finished, begun.get(n)) for n in sorted([*waiting, *begun])]
            choice = choose(groups, law, update)
            if choice.batch is not None:
                break
            finished.add(data.draw(st.sampled_from(sorted(set(begun) - finished))))
        assert choice.batch is not None
        assert len(choice.batch) == size
        assert all(update - begun[number] <= staleness for number in choice.batch)
        held = min((n for n in [*waiting, *begun] if n not in finished), default=given_out)
        assert all(number < held + law.window for number in choice.batch) or drops
        for number in (*choice.batch, *choice.too_old):
            begun.pop(number)
            finished.discard(number)
        trained += choice.batch
        dropped += choice.too_old
    assert sorted([*trained, *dropped, *waiting, *begun]) == list(range(given_out))
    assert not dropped or drops
