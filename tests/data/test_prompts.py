"""What becomes of a row: which ids the policy gets, what rewards see, and what is told about it."""

import datasets
import numpy
import pytest
import torch

from nearstep.common.errors import DataError
from tests.data.making import BOS, EOS, PAD, framing_tokenizer, ids_of_text, mix, prompt_set, user
from tests.tiny import byte_tokenizer


def ids(prompts):
    return [prompts.ids(number) for number in range(len(prompts))]


def everything(prompts):
    [chunk] = mix(prompts).in_order(len(prompts))
    return chunk


class TestColumns:
    def test_text(self):
        prompts = prompt_set([{"prompt": "ab"}, {"prompt": "c"}])
        assert ids(prompts) == [ids_of_text("ab"), ids_of_text("c")]
        assert prompts.lengths.tolist() == [2, 1]
        assert everything(prompts).inputs == ["ab", "c"]
        assert prompts.report.sentences() == []

    def test_query_is_text(self):
        assert everything(prompt_set([{"query": "ab"}])).inputs == ["ab"]

    @pytest.mark.parametrize("column", ["prompt", "messages"])
    def test_chat_goes_through_the_template_once(self, column):
        prompts = prompt_set([{column: user("hi")}])
        assert ids(prompts) == [ids_of_text("<|user|>hi<eos><|assistant|>")]
        assert everything(prompts).inputs == [user("hi")]

    def test_chat_with_every_role(self):
        chat = [{"role": role, "content": role} for role in ("user", "assistant", "tool", "tool", "assistant", "user")]
        for first in ("system", "developer"):
            messages = [{"role": first, "content": ""}, *chat]
            assert everything(prompt_set([{"prompt": messages}])).inputs == [messages]

    def test_text_and_chat_mixed(self):
        prompts = prompt_set([{"prompt": "ab"}, {"prompt": user("hi")}])
        assert everything(prompts).inputs == ["ab", user("hi")]

    def test_prompt_beats_messages_and_query(self):
        prompts = prompt_set([{"query": "c", "messages": [*user("a"), {"role": "assistant"}], "prompt": "a"}])
        assert ids(prompts) == [ids_of_text("a")]
        assert set(everything(prompts).columns) == {"query", "messages"}

    @pytest.mark.parametrize(
        "given",
        [[5, 6], (5, 6), torch.tensor([5, 6]), numpy.array([5, 6]), [numpy.int64(5), 6], torch.tensor([5, 6]).int()],
    )
    def test_ids_are_kept(self, given):
        prompts = prompt_set([{"input_ids": given}])
        assert ids(prompts) == [[5, 6]]
        assert everything(prompts).inputs == [byte_tokenizer().decode([5, 6])]

    def test_shown_text_of_ids_has_no_special_tokens(self):
        prompts = prompt_set([{"input_ids": [EOS, *ids_of_text("ab")]}])
        assert ids(prompts) == [[EOS, *ids_of_text("ab")]]
        assert everything(prompts).inputs == ["ab"]

    def test_ids_beat_text_for_the_policy_and_text_is_shown(self):
        prompts = prompt_set([{"input_ids": [5, 6], "prompt": "shown", "attention_mask": [1, 1]}])
        assert ids(prompts) == [[5, 6]]
        assert everything(prompts).inputs == ["shown"]
        assert everything(prompts).columns == {}
        assert prompts.report.sentences() == ["The policy sees the column 'input_ids', rewards see 'prompt'."]

    def test_other_columns_pass(self):
        rows = [{"prompt": "a", "answer": 1, "completion": "x"}, {"prompt": "b", "answer": 2, "extra": []}]
        columns = everything(prompt_set(rows)).columns
        assert columns == {"answer": [1, 2], "completion": ["x", None], "extra": [None, []], "reference": ["x", None]}

    def test_data_set_tokenised_as_in_old_scripts(self):
        tokenizer = byte_tokenizer()
        dataset = datasets.Dataset.from_list([{"prompt": "ab"}, {"prompt": "c"}])
        dataset = dataset.map(lambda row: tokenizer(row["prompt"], padding=False), remove_columns=["prompt"])
        assert ids(prompt_set(dataset)) == [ids_of_text("ab"), ids_of_text("c")]
        assert ids(prompt_set(dataset.with_format("torch"))) == [ids_of_text("ab"), ids_of_text("c")]

    def test_keys_that_datasets_adds_to_messages_are_taken_out(self):
        call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
        chat = [*user("1+1?"), call, {"role": "tool", "content": "2", "name": "add"}]
        dataset = datasets.Dataset.from_list([{"messages": chat}])
        assert dataset[0]["messages"][0]["tool_calls"] is None
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = "{% for m in messages %}{{ m.keys() | sort | join(' ') }}.{% endfor %}"
        prompts = prompt_set(dataset, tokenizer=tokenizer)
        assert tokenizer.decode(prompts.ids(0)) == "content role.role tool_calls.content name role."
        assert everything(prompts).inputs[0][0] == {"role": "user", "content": "1+1?"}


class TestSpecialTokens:
    def test_bos_of_the_tokenizer_stays_and_its_eos_is_taken_off(self):
        prompts = prompt_set([{"prompt": "ab"}, {"prompt": "c<eos>"}], tokenizer=framing_tokenizer())
        assert ids(prompts) == [[BOS, *ids_of_text("ab")], [BOS, *ids_of_text("c"), EOS]]
        assert prompts.report.sentences() == ["The tokenizer's EOS was taken off the end of 2 prompts."]

    def test_template_brings_the_only_bos(self):
        tokenizer = framing_tokenizer()
        tokenizer.chat_template = "<s>{{ messages[0].content }}{% if add_generation_prompt %}>{% endif %}"
        prompts = prompt_set([{"prompt": user("ab")}], tokenizer=tokenizer)
        assert ids(prompts) == [[BOS, *ids_of_text("ab>")]]
        assert prompts.report.sentences() == []

    @pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
    def test_what_the_pad_token_is_changes_nothing(self, pad):
        tokenizer = byte_tokenizer(pad=pad)
        rows = [{"prompt": "a<eos>b"}, {"prompt": user("hi")}]
        assert ids(prompt_set(rows, tokenizer=tokenizer)) == ids(prompt_set(rows))
        given = [{"input_ids": [EOS, 5, EOS]}]
        assert ids(prompt_set(given, tokenizer=tokenizer)) == [[EOS, 5, EOS]]

    def test_pad_token_inside_a_prompt_is_a_token_like_others(self):
        assert ids(prompt_set([{"prompt": "a<pad>b<pad>"}])) == [[*ids_of_text("a"), PAD, *ids_of_text("b"), PAD]]

    @pytest.mark.parametrize(
        ("given", "mask"), [([PAD, PAD, 5, 6], [0, 0, 1, 1]), ([5, 6, PAD, PAD], [True, True, False, False])]
    )
    def test_padding_on_either_side_is_taken_off_by_its_mask(self, given, mask):
        # D19: right-padded queries gave wrong slices.
        row = {"input_ids": torch.tensor(given), "attention_mask": torch.tensor(mask)}
        prompts = prompt_set([row, {"input_ids": [7], "attention_mask": [1]}])
        assert ids(prompts) == [[5, 6], [7]]
        assert prompts.report.sentences() == ["1 of 2 prompts had padding, which was taken off."]


class TestLongPrompts:
    rows = ({"prompt": "abc"}, {"prompt": "abcd"}, {"prompt": "abcde", "n": 2})

    def test_error_names_every_long_row(self):
        with pytest.raises(DataError) as error:
            prompt_set(self.rows, max_prompt_length=3)
        assert "2 of 3 rows" in str(error.value)
        assert "row index 1, column 'prompt': 4 tokens, and at most 3 are allowed" in str(error.value)
        assert "row index 2, column 'prompt': 5 tokens" in str(error.value)
        assert "on_long_prompt to drop or cut_left" in str(error.value)

    def test_drop(self):
        prompts = prompt_set(self.rows, max_prompt_length=3, on_long_prompt="drop")
        assert everything(prompts).inputs == ["abc"]
        assert prompts.report.sentences() == ["2 of 3 prompts were left out: longer than 3 tokens."]

    def test_dropping_keeps_rows_and_columns_together(self):
        prompts = prompt_set(self.rows[::-1], max_prompt_length=4, on_long_prompt="drop")
        assert everything(prompts).inputs == ["abcd", "abc"]
        assert everything(prompts).columns == {"n": [None, None]}
        assert [prompts.position(number) for number in range(2)] == ["row index 1", "row index 2"]

    def test_dropping_all(self):
        with pytest.raises(DataError, match="'mine', split 'train': all 3 prompts are longer than 2 tokens"):
            prompt_set(self.rows, max_prompt_length=2, on_long_prompt="drop")

    def test_cut_left_keeps_the_last_tokens(self):
        prompts = prompt_set(self.rows, max_prompt_length=4, on_long_prompt="cut_left")
        assert ids(prompts) == [ids_of_text("abc"), ids_of_text("abcd"), ids_of_text("bcde")]
        assert everything(prompts).inputs == ["abc", "abcd", "abcde"]
        assert prompts.report.sentences() == [
            "1 of 3 prompts keep only their last tokens: longer than 4 tokens. Rewards still see them whole."
        ]

    def test_cut_ids_are_shown_as_cut(self):
        prompts = prompt_set([{"input_ids": ids_of_text("abc")}], max_prompt_length=2, on_long_prompt="cut_left")
        assert everything(prompts).inputs == ["bc"]
        assert "whole" not in prompts.report.sentences()[0]

    @pytest.mark.parametrize("rule", ["error", "drop", "cut_left"])
    def test_no_limit(self, rule):
        prompts = prompt_set(self.rows, on_long_prompt=rule)
        assert prompts.lengths.tolist() == [3, 4, 5]
        assert prompts.report.sentences() == []
