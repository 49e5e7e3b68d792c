"""Likeness to references: worked by hand, and equal to the libraries that do the work."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.builtin import Bleu, Chrf, ContainsAnswer, ExactMatch, Meteor, Rouge
from tests.rewards.builtin.asking import value, values

REFERENCE = "the cat sat on the mat"
ALL = [ExactMatch(), ContainsAnswer(), Bleu(), Chrf(), Rouge(), Meteor(synonyms=False)]


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
def test_the_reference_itself_is_worth_1_and_silence_0(reward):
    found = values(reward, REFERENCE, "", " \n", reference=[REFERENCE] * 3)
    # METEOR takes a little off for the one run of matches: ½ (1/6)³.
    assert found[0] == pytest.approx(1.0, abs=0.5 / 6**3 + 1e-9)
    assert found[1:] == [0.0, 0.0]


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
def test_rows_without_a_reference_are_not_scored(reward):
    cells = [None, "", [], [None, ""], math.nan, REFERENCE]
    found = values(reward, *[REFERENCE] * 6, reference=cells)
    assert found[:5] == [None] * 5
    assert found[5] > 0.99


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
def test_of_several_references_the_best_counts(reward):
    both = value(reward, REFERENCE, reference=["a dog barks", REFERENCE])
    assert both == pytest.approx(value(reward, REFERENCE, reference=REFERENCE))


@pytest.mark.parametrize("reward", ALL, ids=lambda reward: reward.__name__)
def test_the_column_has_a_name_that_can_be_told(reward):
    with pytest.raises(RewardError, match=f"{reward.__name__}:reference=COLUMN"):
        reward.check_columns(["summary"])
    other = dataclasses.replace(reward, reference="summary")
    other.check_columns(["summary"])
    assert value(other, REFERENCE, summary=REFERENCE) > 0.99


def test_the_column_completion_is_not_handed_over():
    with pytest.raises(RewardError, match="'completion' belongs to the prompts and is not handed over to rewards"):
        ExactMatch(reference="completion").check_columns(["completion"])


@pytest.mark.parametrize(
    ("text", "strict", "expected"),
    [
        ("The cat.", False, 1.0),
        ("the  CAT", False, 1.0),
        ("the cat sat", False, 0.0),
        ("the cat", True, 0.0),
        (" The cat. ", True, 1.0),
    ],
)
def test_exact_match(text, strict, expected):
    assert value(ExactMatch(strict=strict), text, reference="The cat.") == expected


def test_numbers_are_compared_as_they_are_written():
    assert values(ExactMatch(), "42", "4.5", "42", reference=[42, 4.5, 4]) == [1.0, 1.0, 0.0]


def test_contains_answer():
    assert values(ContainsAnswer(), "It is the CAT, I think", "concatenate", reference=["the cat", "cat"]) == [1.0, 0.0]
    # Gamed: all answers at once.
    assert value(ContainsAnswer(), "red or green or blue", reference="blue") == 1.0


def test_bleu_worked_by_hand():
    # Of “the cat sat” against six words: all n-grams up to three match, there are no four (effective order), and
    # the brevity penalty is exp(1 - 6/3).
    assert value(Bleu(), "the cat sat", reference=REFERENCE) == pytest.approx(math.exp(-1))
    # Unigrams 2 of 3, bigrams 1 of 2, trigrams 0 of 1, smoothed to ½ of 1: (2/3 · 1/2 · 1/2)^(1/3) · exp(1 - 4/3).
    assert value(Bleu(), "the cat ran", reference="the cat sat down") == pytest.approx(
        (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3) * math.exp(1 - 4 / 3)
    )


def test_bleu_and_case():
    assert value(Bleu(), "THE CAT SAT ON THE MAT", reference=REFERENCE) == 0.0
    assert value(Bleu(lowercase=True), "THE CAT SAT ON THE MAT", reference=REFERENCE) == pytest.approx(1.0)


def test_chrf_worked_by_hand():
    # “ab” against “ac”: one of two characters on each side, no pair; one of each is left over of orders with n-grams:
    # precision and recall are (1/2 + 0) / 2 = 1/4, and so is F2.
    assert value(Chrf(), "ab", reference="ac") == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        # Words 3 of 3 and 3 of 6; pairs 1 of 2 and 1 of 5 (“the cat”); subsequence “the cat mat” 3 of 3 and 3 of 6.
        ("rouge1", 2 / 3),
        ("rouge2", 2 / 7),
        ("rougeL", 2 / 3),
    ],
)
def test_rouge_worked_by_hand(variant, expected):
    assert value(Rouge(variant=variant), "the cat mat", reference=REFERENCE) == pytest.approx(expected)


def test_rouge_of_summaries_goes_sentence_by_sentence():
    text, reference = "Mice run. Cats sit.", "Cats sit. Mice run."
    assert value(Rouge(variant="rougeL"), text, reference=reference) == 0.5
    assert value(Rouge(variant="rougeLsum"), text, reference=reference) == 1.0


def test_rouge_stems_if_asked():
    assert value(Rouge(), "running cats", reference="run cat") == 0.0
    assert value(Rouge(stem=True), "running cats", reference="run cat") == 1.0


def test_order_hardly_matters_to_rouge1():
    assert value(Rouge(variant="rouge1"), "mat the on sat cat the", reference=REFERENCE) == 1.0


def test_meteor_worked_by_hand():
    # Matches: a cat | mat, m = 3, two runs. P = 1, R = ½, F = 10PR / (R + 9P) = 5 / 9.5, penalty ½ (2/3)³.
    expected = 5 / 9.5 * (1 - 0.5 * (2 / 3) ** 3)
    assert value(Meteor(synonyms=False), "a cat mat", reference="a cat sat on the mat") == pytest.approx(expected)


def test_meteor_matches_a_repeated_word_with_its_last_place():
    # “the” is matched with the second one of the reference, which makes three runs of the three matches.
    assert value(Meteor(synonyms=False), "the cat mat", reference=REFERENCE) == pytest.approx(5 / 9.5 * 0.5)


def test_meteor_matches_stems():
    assert value(Meteor(synonyms=False), "cats running", reference="cat runs") == pytest.approx(1 - 0.5 / 8)


@pytest.mark.slow
def test_meteor_matches_synonyms_where_wordnet_is_there(tmp_path):
    folder = tmp_path / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    names = [f"{kind}.{part}" for kind in ("index", "data") for part in ("adj", "adv", "noun", "verb", "sense")]
    for name in [*names, "adj.exc", "adv.exc", "noun.exc", "verb.exc", "cntlist.rev"]:
        (folder / name).write_text("")
    (folder / "lexnames").write_text("00\tnoun.artifact\t1\n")
    (folder / "data.noun").write_text("00000000 00 n 02 car 0 auto 0 000 | a vehicle  \n")
    (folder / "index.noun").write_text("auto n 1 0 1 0 00000000  \ncar n 1 0 1 0 00000000  \n")
    code = (  # in a process of its own, for nltk keeps the first data that it finds
        "from nearstep.rewards.builtin import Meteor\n"
        "for reward in (Meteor(), Meteor(synonyms=False)):\n"
        "    reward.check_columns(['reference'])\n"
        "    print(*reward(completions=['the auto'], reference=['the car']))"
    )
    environment = {**os.environ, "NLTK_DATA": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    # Two matches in one run: 1 - ½ (1/2)³. Of one match of two words P = R = ½, and the penalty is ½.
    assert [float(line) for line in run.stdout.splitlines()] == pytest.approx([15 / 16, 0.25])


def test_meteor_without_wordnet_says_how_to_go_on(monkeypatch, tmp_path):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.delenv("NLTK_DATA", raising=False)
    with pytest.raises(RewardError, match=r"python -m nltk.downloader wordnet, or .*meteor:synonyms=false"):
        Meteor().check_columns(["reference"])


@pytest.mark.parametrize(
    ("reward", "package"), [(Bleu(), "sacrebleu"), (Chrf(), "sacrebleu"), (Rouge(), "rouge_score"), (Meteor(), "nltk")]
)
def test_a_missing_library_names_its_extra(reward, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RewardError, match=rf"needs the package {package}.*pip install 'nearstep\[metrics\]'"):
        reward.check_columns(["reference"])


# --- The libraries themselves

TEXTS = [
    "The mayor opened the new bridge on Monday, and the crowd cheered.",
    "On Monday, a bridge was opened.",
    "Nothing of the kind; the crowd's mood: cheerful!",
]


@pytest.mark.parametrize("text", TEXTS)
def test_equal_to_sacrebleu(text):
    import sacrebleu

    assert value(Bleu(), text, reference=TEXTS[:2]) == min(1.0, sacrebleu.sentence_bleu(text, TEXTS[:2]).score / 100)
    assert value(Chrf(), text, reference=TEXTS[:1]) == sacrebleu.sentence_chrf(text, TEXTS[:1]).score / 100


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
def test_equal_to_rouge_score(text, variant):
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer([variant]).score_multi(TEXTS[:2], text)[variant].fmeasure
    assert value(Rouge(variant=variant), text, reference=TEXTS[:2]) == expected
