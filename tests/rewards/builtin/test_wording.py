"""Wording rewards, worked by hand, and how they are gamed."""

import pytest

from nearstep.rewards.builtin import Coherence, Conciseness, Diversity, Engagement, Fluency, RepetitionPenalty
from tests.rewards.builtin.asking import value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sky is blue.", 1.0),
        # 2 of 6 words are fillers.
        ("The sky is really very blue.", 4 / 6),
        # “in order to” fills 3 of 6.
        ("In order to win, you train.", 3 / 6),
        # {cats, chase, mice} and {cats, eat, mice}: 2 of 4 words are shared. Plurals lose their s.
        ("Cats chase mice. Cats eat mice.", 0.5),
        # The same sentence again carries everything over.
        ("Cats chase mice. Cats chase mice.", 0.0),
    ],
)
def test_conciseness(text, expected):
    assert value(Conciseness(), text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "ngram_words", "expected"),
    [
        ("a b c d", 3, 0.0),
        # abc bca cab abc: 3 of 4 are new.
        ("a b c a b c", 3, -0.25),
        ("no no no no", 1, -0.75),
        ("No, no! NO", 2, -0.5),
        ("a b", 3, 0.0),
    ],
)
def test_repetition_penalty(text, ngram_words, expected):
    assert value(RepetitionPenalty(ngram_words=ngram_words), text) == expected


def test_diversity_averages_windows():
    # Windows of two: ab, ba, aa: 2, 2 and 1 different words of 2.
    assert value(Diversity(window_words=2), "a b a a") == pytest.approx(5 / 6)
    assert value(Diversity(window_words=50), "a b a a") == pytest.approx(2 / 4)


def test_diversity_does_not_fall_with_length():
    cycle = " ".join(f"w{number}" for number in range(50))
    assert value(Diversity(), cycle) == value(Diversity(), f"{cycle} {cycle} {cycle}") == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The sky is blue.", 1.0),
        ("“Is the sky blue?” she asked.", 1.0),
        ("the sky is blue.", 0.0),
        ("The sky is blue", 0.0),
        ("The sky is blue. And so", 0.5),
        ("Yes. The sky is blue.", 0.5),
        ("Dr. Smith met Prof. Jones, e.g. on Monday.", 1.0),
        ("The sky is blue.\nThe sea is too.", 1.0),
        ("天空是蓝色的。", 1.0),
    ],
)
def test_fluency_counts_well_formed_sentences(text, expected):
    assert value(Fluency(), text) == expected


def test_fluency_does_not_see_nonsense():
    assert value(Fluency(), "Blue is of the.") == 1.0


def test_fluency_limits_the_length_of_sentences():
    assert value(Fluency(minimum_words=1, maximum_words=2), "Go. Go on. Go on now.") == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cats chase mice.", 0.0),
        ("Cats chase mice. Mice run away.", 1.0),
        ("Cats chase mice. They run fast.", 1.0),
        ("Cats chase mice. However, dogs bark.", 1.0),
        ("Cats chase mice. Dogs bark. Rain fell.", 0.0),
        ("Cats chase mice. Mice run. Rain fell.", 0.5),
        # Saying it again is no link.
        ("Cats chase mice. Cats chase mice.", 0.0),
        # Gamed: a connective before anything.
        ("Cats chase mice. And rain fell. And chairs sang.", 1.0),
    ],
)
def test_coherence(text, expected):
    assert value(Coherence(), text) == expected


def test_engagement_counts_sentences_that_address_the_reader():
    assert value(Engagement(), "You can try this. It works. Would it help? The end.") == 0.5
    assert value(Engagement(), "Young yourselves!") == 0.0
