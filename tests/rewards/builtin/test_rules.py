"""What holds for every built-in reward: its range, one value per row, silence, missing columns, plain calls."""

import dataclasses
import inspect
import pickle
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nearstep.common.errors import RewardError
from nearstep.config.options import option_of
from nearstep.rewards import builtin
from nearstep.rewards.builtin.metadata import Metadata
from nearstep.rewards.builtin.spec import read_spec
from nearstep.rewards.builtin.table import BUILT_INS, GROUPS
from nearstep.testing import check_reward
from tests.lanes import slow
from tests.rewards.builtin.asking import values

# Those without a model, a process of their own or a sandbox; these have tests of their own for the same.
QUICK = [
    "length", "length_target", "brevity", "overlong_penalty:maximum_tokens=9,buffer_tokens=3", "conciseness",
    "repetition_penalty", "diversity:window_words=3", "readability", "reading_grade", "fluency", "coherence",
    "engagement", "regex:pattern=.*a.*", "json", "json_schema", "tags", "keywords", "forbidden_words", "relevance",
    "relevance:to=context", "grounding", "politeness", "helpfulness", "honesty", "safety", "fair_wording",
    "causal_reasoning", "counterfactual_reasoning", "exact_match", "contains_answer", "bleu", "chrf", "rouge",
    "rouge:variant=rougeLsum", "meteor:synonyms=false", "numeric_answer", "arithmetic", "code_syntax",
]  # fmt: skip
SLOW = {
    "likelihood", "semantic_similarity", "bertscore", "math_answer", "code_style", "code_execution", "code_tests",
    "classifier", "sentiment", "toxicity", "entailment", "logical_consistency",
}  # fmt: skip
COLUMNS = {"reference": "The cat sat.", "answer": "12", "context": "Cats in Rome, 1990.", "keywords": ["cat", "a"],
           "forbidden_words": ["dog"], "schema": '{"type": "object"}'}  # fmt: skip
PIECES = [
    "The", "cat", "sat.", "please", "idiot", "because", "if", "would", "had", "12", "=", "3", "+", "9", "```python\n",
    "\n```", "<think>", "</think>", "{}", "a", "you?",
]  # fmt: skip
BLANK = ["", " ", "\n\t "]

TEXTS = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="aA1 .,!?=+-*/()[]{}<>\"'`\n\\", max_size=80),
    st.lists(st.sampled_from(PIECES), max_size=30).map(" ".join),
)


def columns(rows):
    return {name: [cell] * rows for name, cell in COLUMNS.items()}


def test_every_built_in_is_among_them():
    assert {spec.partition(":")[0] for spec in QUICK} | SLOW == set(BUILT_INS)


@pytest.mark.parametrize("spec", QUICK)
@settings(max_examples=10)
@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_values_lie_in_the_range_and_rows_do_not_touch_each_other(spec, texts):
    reward = read_spec(spec)
    found = values(reward, *texts, **columns(len(texts)))
    assert len(found) == len(texts)
    for score in found:
        assert score is None or reward.metadata.low <= score <= reward.metadata.high
    assert found == [values(reward, text, **columns(1))[0] for text in texts]


@pytest.mark.parametrize("spec", QUICK)
def test_nothing_said_is_worth_0(spec):
    found = values(read_spec(spec), *BLANK, **columns(3), completion_ids=[[], [5], [5, 5]], prompts=["The cat"] * 3)
    assert found == [0.0] * 3


@pytest.mark.parametrize("spec", [*QUICK, "math_answer", slow("code_style")])
def test_it_keeps_the_laws_that_rewards_of_users_are_held_to(spec):
    texts = ["The cat sat.", "so 3 + 9 = 12", "```python\na = 1\n```"]
    check_reward(read_spec(spec), rows=[{"prompt": "Say: ", "completion": text, **COLUMNS} for text in texts])


@pytest.mark.parametrize("spec", QUICK)
def test_text_and_conversations_are_scored_alike(spec):
    text = "The cat sat, because 3 + 9 = 12. You are a <think>fine</think> cat."
    reward = read_spec(spec)
    as_text = values(reward, text, **columns(1), completion_ids=[[1] * 7])
    messages = [{"role": "assistant", "content": text}]
    assert values(reward, messages, **columns(1), completion_ids=[[1] * 7]) == as_text


@pytest.mark.parametrize("spec", QUICK)
def test_a_reward_can_be_sent_to_another_process(spec):
    reward = read_spec(spec)
    assert pickle.loads(pickle.dumps(reward)) == reward


@pytest.mark.parametrize("spec", [s for s in QUICK if "column" in read_spec(s).metadata.needs or "to=" in s])
def test_without_its_column_it_stops_and_says_so(spec):
    reward = read_spec(spec)
    with pytest.raises(RewardError, match="needs a column: the data set has no column"):
        reward.check_columns([])
    with pytest.raises(RewardError, match="which it was not given"):
        values(reward, "text")


@pytest.mark.parametrize("kind", BUILT_INS.values(), ids=BUILT_INS.keys())
def test_it_says_what_it_is(kind):
    metadata = kind.metadata
    assert isinstance(metadata, Metadata)
    assert metadata.low < metadata.high
    assert metadata.gaming.endswith(".")
    assert (metadata.package == "") == (metadata.extra == "")
    assert inspect.cleandoc(kind.__doc__).split("\n\n")[0].endswith(".")
    for parameter in dataclasses.fields(kind):
        assert option_of(parameter).help
    signature = inspect.signature(kind.__call__)
    assert typing.get_origin(signature.return_annotation) is list
    assert list(signature.parameters)[-1] == "columns"  # TRL hands over everything there is


def test_the_public_names_are_the_classes_of_the_table():
    classes = {kind.__name__ for kinds in GROUPS.values() for kind in kinds}
    assert classes == set(builtin.__all__)
    assert {type(read_spec(spec)).__name__ for spec in QUICK} <= classes
