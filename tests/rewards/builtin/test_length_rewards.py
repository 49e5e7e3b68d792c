"""Length rewards, worked by hand."""

import pytest

from nearstep.common.errors import ConfigError, RewardError
from nearstep.rewards.builtin import Brevity, Length, LengthTarget, OverlongPenalty
from tests.rewards.builtin.asking import value, values


def said(words):
    return "word " * words


def test_length_is_a_range_with_both_ends_in_it():
    reward = Length(minimum_words=2, maximum_words=4)
    assert values(reward, *map(said, [1, 2, 4, 5])) == [0.0, 1.0, 1.0, 0.0]


def test_length_target_falls_evenly_on_both_sides():
    assert values(LengthTarget(words=4), *map(said, [0, 1, 4, 5, 7, 8, 50])) == [0.0, 0.25, 1.0, 0.75, 0.25, 0.0, 0.0]


def test_brevity_is_full_then_falls_to_0():
    assert values(Brevity(full_words=2, zero_words=6), *map(said, [0, 1, 2, 3, 5, 6, 9])) == [
        0.0, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0,
    ]  # fmt: skip


def test_overlong_penalty_has_the_values_of_its_paper():
    reward = OverlongPenalty(maximum_tokens=20480, buffer_tokens=4096)
    lengths = [1, 16384, 16385, 18432, 20480, 20481]
    found = values(reward, *["x"] * 6, completion_ids=[[0] * length for length in lengths])
    assert found == pytest.approx([0, 0, -0.000244140625, -0.5, -1, -1], abs=1e-12)


def test_the_penalty_may_grow_from_the_first_token_on():
    reward = OverlongPenalty(maximum_tokens=4, buffer_tokens=4)
    assert values(reward, "x", "x", completion_ids=[[0], [0] * 4]) == [-0.25, -1.0]


def test_the_same_word_over_and_over_is_worth_as_much():
    assert value(LengthTarget(words=3), "buy buy buy") == value(LengthTarget(words=3), "the sky is") == 1.0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("don't well-known", 2),
        ("It’s 3.5, e.g. x_1", 6),
        ("天空 是 blue色", 5),
        (" -- !? ", 0),
        ("Grüße, Ελλάδα", 2),
    ],
)
def test_what_a_word_is(text, count):
    assert value(Length(minimum_words=max(1, count), maximum_words=max(1, count)), text) == float(count > 0)
    assert value(LengthTarget(words=1000), text) == pytest.approx(count / 1000)


def test_a_conversation_is_scored_by_what_the_assistant_says():
    chat = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four five"}]
    assert value(LengthTarget(words=2), chat) == 1.0


@pytest.mark.parametrize("completion", [None, 3, ["text"], [{"role": "assistant", "content": "a"}, "text"]])
def test_a_completion_that_is_none_is_an_error(completion):
    with pytest.raises(RewardError, match="a completion must be text or a list of messages, not "):
        value(LengthTarget(words=2), completion)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Length(minimum_words=5, maximum_words=4), "minimum_words = 5 is more than maximum_words = 4"),
        (lambda: Brevity(full_words=5, zero_words=5), "full_words = 5 must be below zero_words = 5"),
        (lambda: OverlongPenalty(maximum_tokens=5, buffer_tokens=6), "at most maximum_tokens = 5"),
        (lambda: OverlongPenalty(maximum_tokens=5, buffer_tokens=0), "must be at least 1"),
        (lambda: LengthTarget(words=0), r"words = 0 must be at least 1. Its parameters: words=120 \(number of words"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(make, complaint):
    with pytest.raises(ConfigError, match=complaint):
        make()
