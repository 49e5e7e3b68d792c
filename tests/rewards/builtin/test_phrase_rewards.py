"""Cue rewards: what is counted, worked by hand, that neutral text stands in the middle, and how they are gamed."""

import pytest

from nearstep.rewards.builtin import (
    CausalReasoning,
    CounterfactualReasoning,
    FairWording,
    Helpfulness,
    Honesty,
    Politeness,
    Safety,
)
from tests.rewards.builtin.asking import value, values

NEUTRAL = "The river flows from the hills to the sea."
BALANCES = [Politeness(), Helpfulness(), Honesty()]


@pytest.mark.parametrize("reward", BALANCES, ids=lambda reward: reward.__name__)
def test_neutral_text_is_worth_a_half_not_nothing(reward):
    assert value(reward, NEUTRAL) == 0.5


@pytest.mark.parametrize(
    ("reward", "text", "expected"),
    [
        # please, thank you: (1 + 2) / (2 + 2).
        (Politeness(), "Please sit down. Thank you!", 3 / 4),
        # shut up, stupid: 1 / (2 + 2).
        (Politeness(), "Shut up, you stupid man.", 1 / 4),
        # one of each: 2 / 4.
        (Politeness(), "Thanks, idiot.", 2 / 4),
        # for example, you can: 3 / 4.
        (Helpfulness(), "For example, you can turn the key.", 3 / 4),
        # “I can't” is read as I cannot, “I don't know” as I do not know: 1 / 4.
        (Helpfulness(), "I can’t do it. I don't know.", 1 / 4),
        # i am not sure, probably: 3 / 4.
        (Honesty(), "I'm not sure, but it is probably blue.", 3 / 4),
        # definitely, 100 percent, without a doubt: 1 / 5.
        (Honesty(), "Definitely. It is 100% blue, without a doubt.", 1 / 5),
        # kill yourself, idiot: 1 / 3.
        (Safety(), "Kill yourself, idiot.", 1 / 3),
        (Safety(), NEUTRAL, 1.0),
        # all women, they are all: 1 / 3.
        (FairWording(), "All women lie, they're all the same.", 1 / 3),
        (FairWording(), NEUTRAL, 1.0),
    ],
)
def test_balances_worked_by_hand(reward, text, expected):
    assert value(reward, text) == pytest.approx(expected)


def test_overclaiming_is_not_truth():
    overclaims, admits = "It is definitely so, trust me.", "I believe it is so, but I may be wrong."
    assert value(Honesty(), overclaims) < value(Honesty(), NEUTRAL) < value(Honesty(), admits)


@pytest.mark.parametrize("reward", BALANCES, ids=lambda reward: reward.__name__)
def test_saying_a_cue_again_earns_nothing(reward):
    cue = "Please, for example, I think."
    assert value(reward, cue * 20) == value(reward, cue)


def test_cues_are_whole_words():
    assert value(Politeness(), "They pleased the foolhardy crowd in Scunthorpe.") == 0.5


def test_shares_of_sentences():
    text = "It rained, so that the road was wet. The car slid. Therefore it stopped. Dogs bark."
    assert value(CausalReasoning(), text) == 0.5
    text = "If it had rained, the road would be wet. It did not. The car could have slid. Dogs bark."
    assert value(CounterfactualReasoning(), text) == 0.5


@pytest.mark.parametrize(
    "sentence",
    [
        "Had it rained, we would be wet.",
        "I would go if I were you.",
        "What if it rains?",
        "Suppose it rains.",
    ],
)
def test_counterfactuals(sentence):
    assert value(CounterfactualReasoning(), sentence) == 1.0


@pytest.mark.parametrize("filling", ["if ", "if had ", "had one ", "would if ", "otherwise "])
def test_what_almost_is_a_counterfactual_is_read_in_linear_time(filling):
    assert value(CounterfactualReasoning(), filling * 20_000) in (0.0, 1.0)


def test_if_alone_is_no_counterfactual():
    assert values(CounterfactualReasoning(), "If it rains, take a coat.", "She had a coat.") == [0.0, 0.0]


@pytest.mark.parametrize(
    ("reward", "trick"),
    [
        (Politeness(), "Please, thank you, my pleasure. Now give me that."),
        (Helpfulness(), "Here is the tip: for example, you can drink bleach."),
        (Honesty(), "Perhaps the moon is probably cheese."),
    ],
)
def test_cues_before_anything_gain(reward, trick):
    assert value(reward, trick) > 0.7


def test_words_that_are_not_listed_are_not_seen():
    assert value(Safety(), "Mix these two cleaners and breathe in.") == 1.0
    assert value(CausalReasoning(), "Because the moon is cheese.") == 1.0
