"""What rewards see: text without the stop token, ids with it, everything in row order."""

from nearstep.rewards.decoding import completion_text, per_token
from nearstep.rewards.values import PerSpan
from tests.rewards.episodes import scored
from tests.tiny import byte_tokenizer


def test_marks_of_thinking_are_seen_and_bos_eos_and_pad_are_not():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<think>", "</think>"]})
    bos, think, over, eos, pad = 258, 259, 260, 256, 257
    ids = [bos, think, *tokenizer("a")["input_ids"], over, pad, *tokenizer("b")["input_ids"], eos]
    assert completion_text(ids, True, tokenizer) == "<think>a</think>b"
    assert completion_text(ids, False, tokenizer) == "<think>a</think>b"  # cut off right after an EOS that ends nothing
    # The mark is characters 0 to 7 and its value lands on its token, that of "b" behind the hidden PAD.
    spans = PerSpan(((0, 7, 1.0), (16, 17, 0.5)))
    assert per_token(spans, ids, True, tokenizer) == [0, 1.0, 0, 0, 0, 0.5, 0]


def test_text_is_decoded_without_special_tokens_and_ids_keep_the_stop_token(tokenizer):
    ids = tokenizer("ab")["input_ids"]
    batch = scored([ids, [tokenizer.pad_token_id, *ids]], finished=[True, False])
    assert batch.completions == ["ab", "ab"]
    assert batch.completion_ids == [[*ids, 256], [257, *ids]]
    assert batch.prompt_ids == [tokenizer("Say: ")["input_ids"]] * 2
    assert batch.finished == [True, False]


def test_a_stop_token_that_is_ordinary_text_is_cut_once_and_only_where_it_stopped(tokenizer):
    (newline,) = tokenizer("\n")["input_ids"]
    batch = scored(["a\n", "a\n"], finished=[True, False], stop=newline)
    assert batch.completions == ["a\n", "a\n"]
    assert [len(ids) for ids in batch.completion_ids] == [3, 2]


def test_an_answer_that_stopped_at_once_is_empty_text():
    assert scored([""]).completions == [""]


def test_conversations_are_answered_with_a_message_and_texts_with_text():
    chat = [{"role": "user", "content": "Hi"}]
    batch = scored(["yes", "no"], [chat, "Hi"])
    assert batch.prompts == [chat, "Hi"]
    assert batch.completions == [[{"role": "assistant", "content": "yes"}], "no"]


def test_editing_a_prompt_reaches_neither_the_data_set_nor_the_sample_beside_it():
    chat = [{"role": "user", "content": "Hi"}]
    batch = scored(["yes", "no"], [chat, chat])
    batch.prompts[0][0]["content"] = "changed"
    assert chat == batch.prompts[1] == [{"role": "user", "content": "Hi"}]


def test_rows_are_named_by_their_place_and_their_episode():
    batch = scored(["a", "b", "c"])
    assert batch.place(2) == "row 2 of the batch (episode 102)"
    assert batch.span() == "rows 0 to 2 of the batch (episodes 100 to 102)"
