"""Rewards for certain words, worked by hand."""

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.builtin import ForbiddenWords, Grounding, Keywords, Relevance
from tests.rewards.builtin.asking import value, values


def test_keywords_are_whole_words_in_any_case():
    reward = Keywords(words=("sky", "New York", "C++"))
    assert values(reward, "The SKY of new york.", "skyline", "sky, New York and C++!", "sky") == pytest.approx(
        [2 / 3, 0, 1, 1 / 3]
    )


def test_keywords_of_each_row():
    assert values(Keywords(), "red blue", "red", "red", keywords=[["red", "green"], "red", None]) == [0.5, 1.0, None]


def test_a_list_of_the_keywords_earns_it_all():
    assert value(Keywords(words=("red", "green")), "red green") == 1.0


def test_forbidden_words():
    assert values(ForbiddenWords(words=("damn", "hell")), "Damn it", "goddamned", "") == [-1.0, 0.0, 0.0]
    assert values(ForbiddenWords(), "a b", "a b", forbidden_words=["b", ""]) == [-1.0, None]


def test_relevance_is_the_share_of_content_words_of_the_prompt():
    # mayor, city, elected, bridge: city and bridges are taken up.
    prompt = "Which mayor of the city was elected for bridges?"
    assert value(Relevance(), "The city has a bridge.", prompts=prompt) == 0.5
    assert value(Relevance(), prompt, prompts=prompt) == 1.0
    assert value(Relevance(), "Text.", prompts="What is it?") is None


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        # Plurals lose their s, short words and words with a double s do not.
        ("bridges", "bridge", 1.0),
        ("bus", "bu", 0.0),
        ("glass", "glas", 0.0),
        ("cats", "cat", 1.0),
        # Single letters say nothing, single ideographs do.
        ("x y cats", "cats", 1.0),
        ("天空", "天", 0.5),
    ],
)
def test_what_a_content_word_is(prompt, completion, expected):
    assert value(Relevance(), completion, prompts=prompt) == expected


def test_a_prompt_that_is_none_is_an_error():
    with pytest.raises(RewardError, match="a prompt must be text or a list of messages, not 3"):
        value(Relevance(), "text", prompts=3)


def test_relevance_to_a_conversation_is_to_its_last_question():
    chat = [
        {"role": "user", "content": "dogs"},
        {"role": "assistant", "content": "barking"},
        {"role": "user", "content": "cats"},
    ]
    assert values(Relevance(), "cats purr", "dogs bark", prompts=[chat, chat]) == [1.0, 0.0]


def test_relevance_to_a_column():
    assert values(Relevance(to="topic"), "red sky", "red", topic=["sky", None]) == [1.0, None]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Paris and 1889 are in the source; Lyon and 1890 are not.
        ("The tower of Paris dates from 1889.", 1.0),
        ("The tower of Lyon dates from 1890.", 0.0),
        ("The tower of Paris dates from 1890.", 0.5),
        ("Gustave Eiffel's tower", 1.0),
        ("The tower is tall.", 1.0),
        ("Today I'm in Paris.", 1.0),
        # Gamed: what is vague cannot be wrong.
        ("Some people say things.", 1.0),
    ],
)
def test_grounding(text, expected):
    assert value(Grounding(), text, context="In 1889 Gustave Eiffel finished his tower in Paris.") == expected


def test_grounding_takes_several_sources_and_leaves_rows_without_any():
    assert values(Grounding(), "In Rome", "In Rome", context=[["Paris", "Rome"], None]) == [1.0, None]


@pytest.mark.parametrize(
    ("reward", "column"),
    [
        (Keywords(), "keywords"),
        (ForbiddenWords(), "forbidden_words"),
        (Grounding(), "context"),
        (Relevance(to="topic"), "topic"),
    ],
)
def test_a_missing_column_is_told_before_the_run(reward, column):
    with pytest.raises(RewardError, match=f"has no column '{column}'. Columns handed over: answer"):
        reward.check_columns(["prompt", "answer"])
    reward.check_columns([column])


def test_words_for_all_rows_need_no_column():
    Keywords(words=("a",)).check_columns([])
    ForbiddenWords(words=("a",)).check_columns([])
    Relevance().check_columns([])


def test_a_cell_that_is_no_text_names_reward_column_and_row():
    with pytest.raises(RewardError, match=r"'keywords': column 'keywords', row 1: \{'a': 1\} is neither text nor"):
        values(Keywords(), "a", "b", keywords=["a", {"a": 1}])
