"""Texts become rows as PPO will show them to the model: one EOS, one template, nothing cut, bad rows named."""

import pytest

from nearstep.common.errors import DataError
from nearstep.data.pairs import load_pairs
from nearstep.reward_modeling.encoding import LeftOutRows, TextEncoder, compare
from nearstep.reward_modeling.examples import PreferenceLabel
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.model import ModelReward
from nearstep.rewards.reading import EpisodeReader
from tests.reward_modeling.world import chats, pairs
from tests.rewards.episodes import scored
from tests.rewards.test_model import Recorder
from tests.tiny import byte_tokenizer

EOS = 256
PAIR = [{"prompt": "Say:", "chosen": " yes", "rejected": " no"}]


def encoder(tokenizer=None, **changes):
    return TextEncoder(
        EpisodeReader(tokenizer or byte_tokenizer()), **{"vocab_size": 258, "max_length": None, **changes}
    )


def compared(rows, tokenizer=None, *, on_long_text="error", on_bad_row="raise", **changes):
    left_out_rows = LeftOutRows(on_long_text, on_bad_row)
    return compare(load_pairs(rows), encoder(tokenizer, **changes), left_out_rows)


def test_text_ends_with_one_eos():
    tokenizer = byte_tokenizer()
    (comparison,) = compared(PAIR).comparisons
    assert comparison.rows[0] == [*tokenizer("Say: yes")["input_ids"], EOS]
    assert comparison.rows[1] == [*tokenizer("Say: no")["input_ids"], EOS]
    (already,) = compared([{**PAIR[0], "chosen": " yes<eos>"}]).comparisons
    assert already.rows[0] == comparison.rows[0]


def test_conversations_go_through_the_template_once_and_end_with_their_turn():
    tokenizer = byte_tokenizer()
    (comparison,) = compared(chats(PAIR)).comparisons
    text = "<|user|>Say:<eos><|assistant|> yes<eos>"
    assert comparison.rows[0] == tokenizer(text)["input_ids"]
    assert comparison.rows[0].count(EOS) == 2


def test_a_pair_has_the_keywords_of_its_row_for_the_template():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ mood | default('') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    rows = [{**row, "chat_template_kwargs": given} for row in chats(PAIR) for given in ({"mood": "sad"}, None)]
    texts = [[tokenizer.decode(ids) for ids in each.rows] for each in compared(rows, tokenizer).comparisons]
    assert texts == [["sadSay: yes<eos>", "sadSay: no<eos>"], ["Say: yes<eos>", "Say: no<eos>"]]
    with pytest.raises(DataError, match=r"row index 0, column 'chat_template_kwargs': expected a mapping"):
        load_pairs([{**PAIR[0], "chat_template_kwargs": 3}])


@pytest.mark.parametrize("rows", [PAIR, chats(PAIR)], ids=["text", "chat"])
def test_pad_may_be_eos(rows):
    shared = byte_tokenizer(pad="<eos>")
    assert compared(rows, shared).comparisons == compared(rows).comparisons


@pytest.mark.parametrize("rows", [PAIR, chats(PAIR)], ids=["text", "chat"])
@pytest.mark.parametrize("shift", [0, 7], ids=["same tokenizer", "another tokenizer"])
def test_ppo_shows_the_model_what_it_learnt_from(rows, shift):
    tokenizer, scorer = byte_tokenizer(shift=shift), Recorder()
    (comparison,) = compared(rows, tokenizer).comparisons
    prompt = rows[0]["prompt"]
    reward = ModelReward(
        "rm", scorer, tokenizer=tokenizer, policy=TokenizerIdentity.of(byte_tokenizer()), vocabulary_size=300
    )
    reward.score(scored([" yes", " no"], [prompt, prompt]))
    assert scorer.rows == [list(row) for row in comparison.rows]


def test_margins_are_kept_and_told():
    found = compared([{**PAIR[0], "margin": 2.0}, {**PAIR[0], "chosen": " oui"}])
    assert [comparison.labels[0].margin for comparison in found.comparisons] == [2, 0]
    assert "1 of 2 pairs have a margin, 2 in the mean." in found.sentences


def test_ties_are_kept_and_told():
    found = compared([{**PAIR[0], "preference": 0.5}, PAIR[0]])
    assert [comparison.labels[0].preference for comparison in found.comparisons] == [0.5, 1]
    assert "1 of 2 pairs are ties." in found.sentences


def test_a_pair_whose_chosen_answer_is_less_often_better_is_turned_round():
    turned, plain = compared([{**PAIR[0], "preference": 0.25}, PAIR[0]]).comparisons
    assert turned.rows == plain.rows[::-1]
    assert turned.labels == (PreferenceLabel(0, 1, preference=0.75),)
    assert turned.best_rows() == [plain.rows[1]]


def test_a_long_text_is_an_error_that_names_row_and_column():
    with pytest.raises(
        DataError, match=r"\n  row index 1, column 'rejected': 13 tokens with its prompt, and at most 9"
    ):
        compared([PAIR[0], {**PAIR[0], "rejected": " no more"}], max_length=9)


def test_or_it_is_left_out_and_counted_never_cut():
    found = compared([PAIR[0], {**PAIR[0], "rejected": " no more"}], max_length=9, on_long_text="drop")
    assert len(found.comparisons) == len(found.prompts) == 1
    assert "1 of 2 rows were left out: a text is longer than max_length." in found.sentences
    with pytest.raises(DataError, match="all 1 rows have texts that are too long"):
        compared(PAIR, max_length=3, on_long_text="drop")


def test_a_token_outside_the_vocabulary_is_an_error_with_its_row():
    with pytest.raises(DataError, match=r"row index 0, column 'chosen': id 256 lies outside the model's vocabulary"):
        compared(PAIR, vocab_size=200)


def test_a_conversation_without_a_template_is_an_error_with_its_row():
    with pytest.raises(DataError, match=r"row index 0, column 'chosen': .* no chat template"):
        compared(chats(PAIR), byte_tokenizer(chat=False))


def test_bad_rows_may_be_left_out_and_are_counted():
    rows = [*pairs(3), *chats(PAIR)]
    found = compared(rows, byte_tokenizer(chat=False), on_bad_row="drop")
    assert len(found.comparisons) == 3
    assert any("1 of 4 rows were left out. The first is" in sentence for sentence in found.sentences)


def test_answers_that_become_the_same_tokens_are_no_pair():
    lossy = byte_tokenizer()
    with pytest.raises(DataError, match="the same tokens"):
        compared([{**PAIR[0], "chosen": " yes", "rejected": " yes<eos>"}], lossy)
