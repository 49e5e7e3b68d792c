"""Rewards per token and per span reach the actions that they are for, weighted, beside the reward at the end."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearstep.common.errors import RewardError
from nearstep.rewards.combine import Rewards
from nearstep.rewards.decoding import per_token
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.values import PerSpan, PerToken, read_entries, read_values
from tests.rewards.episodes import play, scored
from tests.tiny import byte_tokenizer


def score(*functions, completions, weights=None, **options):
    rewards = Rewards([FunctionReward(f) for f in functions], byte_tokenizer(), weights=weights)
    return rewards(*play(list(completions), **options))


def per_letter(completions, completion_ids):
    return [[float(token) for token in range(len(ids))] for ids in completion_ids]


def test_values_per_token_land_on_their_actions_and_nothing_at_the_end():
    scores = score(per_letter, completions=["ab", "c"])  # with their stop tokens 3 and 2 actions
    assert scores.dense.tolist() == [0.0, 1.0, 2.0, 0.0, 1.0]
    assert scores.total.tolist() == [0.0, 0.0]
    assert scores.parts["per_letter"].tolist() == [3.0, 1.0]


def test_weights_count_and_parts_of_both_kinds_stand_side_by_side():
    def at_the_end(completions):
        return [10.0, None]

    scores = score(per_letter, at_the_end, completions=["ab", "c"], weights=[2.0, 3.0])
    assert scores.dense.tolist() == [0.0, 2.0, 4.0, 0.0, 2.0]
    assert scores.total.tolist() == [30.0, 0.0]
    assert {name: part.tolist()[:1] for name, part in scores.parts.items()} == {
        "per_letter": [3.0], "at_the_end": [10.0]
    }  # fmt: skip


def test_rows_may_differ_in_form():
    def mixed(completions):
        return [[1.0, 2.0, 3.0], 5.0, None, [(0, 1, 4.0)]]

    scores = score(mixed, lambda completions: [0.0] * 4, completions=["ab", "c", "d", "e"])
    assert scores.dense.tolist() == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0]
    assert scores.total.tolist() == [0.0, 5.0, 0.0, 0.0]


def test_without_any_there_are_none():
    assert score(lambda completions: [1.0], completions=["a"]).dense is None


def test_tensors_and_arrays_hold_tokens_too():
    def rows(completions):
        return [torch.tensor([1, 2, 3]), np.array([4.0, 5.0])]

    assert score(rows, completions=["ab", "c"]).dense.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_span_is_shared_by_its_tokens_and_overlaps_add_up():
    def spans(completions):
        return [[(0, 2, 3.0), (1, 4, 6.0)]]

    scores = score(spans, completions=["abcd"])
    assert scores.dense.tolist() == [1.5, 3.5, 2.0, 2.0, 0.0]
    assert scores.parts["spans"].tolist() == [9.0]


def test_a_character_of_several_tokens_is_paid_as_one_piece():
    # é is two bytes and so two tokens; € is three.
    paid = per_token(PerSpan(((1, 2, 6.0),)), byte_tokenizer()("aé€b")["input_ids"], False, byte_tokenizer())
    assert sum(paid) == pytest.approx(6.0)
    assert paid[0] == paid[-1] == 0.0
    assert paid[1] > 0


def test_the_stop_token_belongs_to_no_span():
    ids = [*byte_tokenizer()("ab")["input_ids"], 256]
    assert per_token(PerSpan(((0, 2, 1.0),)), ids, True, byte_tokenizer()) == [0.5, 0.5, 0.0]


def test_no_spans_is_an_answer_like_any_other():
    scores = score(lambda completions: [[], [(0, 1, 2.0)]], completions=["ab", "c"])
    assert scores.parts["<lambda>"].tolist() == [0.0, 2.0]
    assert not scores.total.isnan().any()


@given(st.text(min_size=1, max_size=30), st.data())
def test_what_spans_are_worth_is_kept_whatever_the_text(text, data):
    text = text.encode("utf-8", "replace").decode()
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    ids = byte_tokenizer()(text)["input_ids"]
    paid = per_token(PerSpan(((start, end, 1.0),)), ids, False, byte_tokenizer())
    assert math.isclose(sum(paid), 1.0)
    first = len(text[:start].encode())
    assert all(worth == 0 for worth in paid[:first])
    assert all(worth == 0 for worth in paid[len(text[:end].encode()) :])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([1.0], "1 values for the 7 tokens of its completion_ids"),
        ([1.0] * 8, "8 values for the 7 tokens"),
        ([1.0, math.nan, 0, 0, 0, 0, 0], "must be finite"),
        ([1e12, 1e12, 0, 0, 0, 0, 0], "would overflow"),
        ([1.0, None, 0, 0, 0, 0, 0], "one number per token, or spans"),
        ([(0, 3, 1.0), 2.0], "one number per token, or spans"),
        ([(0, 3)], "one number per token, or spans"),
        ([(0, 3, "1")], "one number per token, or spans"),
        ([(0.0, 3, 1.0)], "one number per token, or spans"),
        ([(0, 0, 1.0)], "0 <= start < end <= 6, the length of the text"),
        ([(-1, 2, 1.0)], "0 <= start < end <= 6"),
        ([(0, 7, 1.0)], "0 <= start < end <= 6"),
        ([(0, 1, math.inf)], "must be finite"),
        (torch.zeros(2, 7), "one number per token, or spans|a Tensor is no number"),
    ],
    ids=str,
)
def test_what_fits_neither_tokens_nor_text_is_an_error_naming_row_and_value(bad, words):
    batch = scored(["first", "second", "third"])
    with pytest.raises(RewardError, match=words) as raised:
        read_values([0.0, bad, 0.0], batch, "mine")
    assert "'mine'" in str(raised.value)
    assert "row 1 of the batch (episode 101)" in str(raised.value)
    assert isinstance(read_entries([0.0, bad, 0.0], batch, "mine")[1], RewardError)


def test_forms_are_told_apart():
    batch = scored(["ab", "cd"])
    tokens, spans = read_entries([[1, True, np.float32(2)], [[0, 1, 1], (1, 2, 2)]], batch, "mine")
    assert tokens == PerToken((1.0, 1.0, 2.0))
    assert spans == PerSpan(((0, 1, 1.0), (1, 2, 2.0)))


def test_a_conversation_counts_the_characters_of_the_reply():
    chat = [{"role": "user", "content": "Hi"}]
    scores = score(lambda completions: [[(1, 3, 2.0)]], completions=["yes"], prompts=[chat])
    assert scores.dense.tolist() == [0.0, 1.0, 1.0, 0.0]
