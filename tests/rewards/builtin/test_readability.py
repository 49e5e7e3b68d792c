"""Flesch and Kincaid, worked by hand with syllables from the hyphenation dictionary, and against textstat's formula."""

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.builtin import Readability, ReadingGrade
from tests.rewards.builtin.asking import value


def test_reading_ease_worked_by_hand():
    # 6 words, 1 sentence; syllables: the 1, sim-ple 2, cat 1, sat 1, qui-et-ly 3, to-day 2 = 10.
    ease = 206.835 - 1.015 * 6 - 84.6 * 10 / 6
    assert value(Readability(), "The simple cat sat quietly today.") == pytest.approx(ease / 100)


def test_reading_ease_is_cut_to_its_range():
    assert value(Readability(), "The cat sat.") == 1.0
    assert value(Readability(), "Incomprehensibility characterises internationalisation.") == 0.0


def test_grade_worked_by_hand():
    grade = 0.39 * 6 + 11.8 * 10 / 6 - 15.59
    assert value(ReadingGrade(grade=grade), "The simple cat sat quietly today.") == pytest.approx(1.0)
    assert value(ReadingGrade(grade=grade + 1, spread=4.0), "The simple cat sat quietly today.") == pytest.approx(0.75)
    assert value(ReadingGrade(grade=grade - 5, spread=4.0), "The simple cat sat quietly today.") == 0.0


def test_sentences_count():
    # 2 words a sentence, 1 syllable a word: 0.78 + 11.8 - 15.59 = -3.01.
    assert value(ReadingGrade(grade=-3.01), "A cat. A dog.") == pytest.approx(1.0)
    assert value(ReadingGrade(grade=-1.01), "A cat. A dog.") == pytest.approx(0.5)


def test_short_words_without_meaning_are_easy_to_read():
    assert value(Readability(), "Of the to. In a so.") == 1.0


def test_a_missing_library_names_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyphen", None)
    for reward in (Readability(), ReadingGrade()):
        with pytest.raises(RewardError, match=r"needs the package pyphen.*pip install 'nearstep\[metrics\]'"):
            reward.check_columns([])
        with pytest.raises(RewardError, match="pyphen"):
            value(reward, "Text.")
