"""Every known format: recognised by its columns, and what its rows become."""

from typing import ClassVar

import pytest

from nearstep.common.errors import ConfigError, DataError
from nearstep.config.data import FORMATS as SETTING_FORMATS
from nearstep.data.formats.recognise import FORMATS, contradicted_hint, format_named, recognise
from nearstep.data.load import table_of
from nearstep.data.pairs import pairs_of
from nearstep.data.row_errors import BadValueError
from tests.data.making import ids_of_text, mix, prompt_set, user
from tests.tiny import byte_tokenizer


def said(text):
    return [{"role": "assistant", "content": text}]


def name_of(row, *more):
    found = recognise(list(row), [row, *more])
    return None if found is None else found.name


def prompt_of(row, **options):
    """The prompt of a data set of one row, and its reference if it has any."""
    prompts = prompt_set([row], **options)
    batch = mix(prompts).take([0], [0])
    return batch.inputs[0], batch.columns.get("reference", [None])[0]


def pairs(*rows, **options):
    found = pairs_of(table_of(list(rows), "mine", "train"), **options)
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in found.pairs]


def test_settings_and_formats_name_the_same():
    assert sorted(SETTING_FORMATS) == sorted(found.name for found in FORMATS)
    assert [format_named(name).name for name in SETTING_FORMATS] == list(SETTING_FORMATS)


DIALOGUE = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more?\n\nAssistant:"
MESSAGE = {"message_id": "a", "parent_id": None, "text": "hi", "role": "prompter"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "a"}, "prompt"),
        ({"prompt": "a", "completion": "b"}, "prompt/completion"),
        ({"prompt": "a", "messages": []}, "prompt"),
        ({"messages": user("a")}, "messages"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt/chosen/rejected"),
        ({"chosen": "a b", "rejected": "a c"}, "chosen/rejected"),
        ({"chosen": [*user("a"), *said("b")], "rejected": [*user("a"), *said("c")]}, "chosen/rejected"),
        ({"chosen": DIALOGUE, "rejected": DIALOGUE}, "hh-rlhf"),
        ({**MESSAGE, "rank": None, "lang": "en"}, "oasst"),
        (
            {"prompt": "a", "chosen": [], "rejected": [], "score_chosen": 1.0, "score_rejected": 0.0, "messages": []},
            "ultrafeedback_binarized",
        ),
        ({"instruction": "a", "completions": [], "models": []}, "ultrafeedback"),
        ({"subreddit": "a", "title": "b", "post": "c", "summary": "d"}, "tldr"),
        ({"info": {}, "summaries": [], "choice": 0, "worker": "w"}, "tldr-comparisons"),
        ({"instruction": "a", "input": "", "output": "b"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "a"}], "id": 1}, "sharegpt"),
        ({"query": "a"}, "query"),
        ({"question": "a", "answer": "b"}, None),
    ],
)
def test_columns_tell_the_format(row, name):
    assert name_of(row) == name


def test_rows_tell_where_columns_do_not():
    assert name_of({"chosen": None, "rejected": None}, {"chosen": DIALOGUE, "rejected": DIALOGUE}) == "hh-rlhf"


def test_the_name_is_a_hint_and_columns_decide():
    found = recognise(["prompt"], [{"prompt": "a"}])
    assert contradicted_hint("Anthropic/hh-rlhf", found) == [
        "Its name suggests the format hh-rlhf, its columns show prompt: columns decide."
    ]
    assert contradicted_hint("mine", found) == []
    both = recognise(["chosen", "rejected"], [{"chosen": DIALOGUE, "rejected": DIALOGUE}])
    assert contradicted_hint("Anthropic/hh-rlhf", both) == []


def test_no_format_says_how_to_name_the_column():
    with pytest.raises(DataError, match=r"those of no known format.*--columns prompt=question"):
        prompt_set([{"question": "a", "answer": "b"}])
    with pytest.raises(ConfigError, match="did you mean alpaca"):
        format_named("alpacca")


class TestConversations:
    @pytest.mark.parametrize("chat", [user("a"), [*user("a"), *said("b"), *user("c")]])
    def test_a_conversation_that_ends_with_a_question_is_the_prompt(self, chat):
        assert prompt_of({"messages": chat}) == (chat, None)

    def test_the_answer_at_the_end_is_taken_off_and_is_the_reference(self):
        chat = [{"role": "system", "content": "s"}, *user("a"), *said("b"), *user("c")]
        assert prompt_of({"messages": [*chat, *said("d")]}) == (chat, "d")

    def test_sharegpt(self):
        turns = [("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
        row = {"conversations": [{"from": speaker, "value": text} for speaker, text in turns]}
        chat = [{"role": "system", "content": "s"}, *user("a"), *said("b"), *user("c")]
        assert prompt_of(row) == (chat, "d")

    def test_sharegpt_with_a_system_column(self):
        row = {"conversations": [{"from": "human", "value": "a"}], "system": "s"}
        assert prompt_of(row) == ([{"role": "system", "content": "s"}, *user("a")], None)

    def test_sharegpt_calls(self):
        call = {"name": "add", "arguments": {"a": 1}}
        turns = [
            {"from": "human", "value": "1+1?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "2"},
        ]
        chat, _ = prompt_of({"conversations": turns})
        assert chat[1] == {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
        assert chat[2] == {"role": "tool", "content": "2"}

    def test_a_prompt_that_ends_with_the_assistant_is_continued(self):
        prompts = prompt_set([{"prompt": [*user("count"), *said("one, two,")]}])
        assert prompts.ids(0) == ids_of_text("<|user|>count<eos><|assistant|>one, two,")


class TestTranscripts:
    chosen = DIALOGUE + " yes"
    rejected = DIALOGUE + " no"

    def test_the_prompt_is_everything_up_to_the_last_assistant_turn(self):
        prompts = prompt_set([{"chosen": self.chosen, "rejected": self.rejected}])
        assert prompts.ids(0) == ids_of_text(DIALOGUE)
        assert prompt_of({"chosen": self.chosen, "rejected": self.rejected}) == (DIALOGUE, " yes")

    def test_pair(self):
        assert pairs({"chosen": self.chosen, "rejected": self.rejected}) == [(DIALOGUE, " yes", " no")]

    def test_a_pair_that_parts_before_the_last_turn_keeps_what_follows(self):
        first = "\n\nHuman: hi\n\nAssistant:"
        rows = {"chosen": f"{first} a\n\nHuman: so?\n\nAssistant: b", "rejected": f"{first} c"}
        assert pairs(rows) == [(first, " a\n\nHuman: so?\n\nAssistant: b", " c")]
        assert prompt_of(rows)[0] == f"{first} a\n\nHuman: so?\n\nAssistant:"

    def test_as_chat(self):
        row = {"chosen": self.chosen, "rejected": self.rejected}
        chat = [*user("hi"), *said("hello"), *user("more?")]
        assert prompt_of(row, dataset_format="hh-rlhf-chat") == (chat, "yes")
        assert pairs(row, dataset_format="hh-rlhf-chat") == [(chat, said("yes"), said("no"))]


class TestPreferences:
    def test_explicit_texts_stay_as_they_are(self):
        row = {"prompt": "a", "chosen": " b", "rejected": " c"}
        assert pairs(row) == [("a", " b", " c")]
        assert prompt_of(row) == ("a", " b")

    def test_explicit_messages(self):
        row = {"prompt": user("a"), "chosen": said("b"), "rejected": said("c")}
        assert pairs(row) == [(user("a"), said("b"), said("c"))]

    def test_a_text_prompt_beside_messages_is_what_the_user_said(self):
        row = {"prompt": "a", "chosen": said("b"), "rejected": said("c")}
        assert pairs(row) == [(user("a"), said("b"), said("c"))]
        assert prompt_of(row) == ("a", "b")

    def test_answers_that_repeat_the_prompt_lose_it(self):
        chat = {"prompt": user("a"), "chosen": [*user("a"), *said("b")], "rejected": [*user("a"), *said("c")]}
        assert pairs(chat) == [(user("a"), said("b"), said("c"))]
        assert pairs({**chat, "prompt": "a"}) == [(user("a"), said("b"), said("c"))]

    def test_whole_conversations_beat_the_text_of_the_prompt(self):
        before = [{"role": "system", "content": "s"}, *user("a")]
        row = {"prompt": "a", "chosen": [*before, *said("b")], "rejected": [*before, *said("c")]}
        assert pairs(row) == [(before, said("b"), said("c"))]

    def test_shared_start_of_messages_ends_with_a_question(self):
        chosen = [*user("a"), *said("b"), *user("c"), *said("d")]
        assert pairs({"chosen": chosen, "rejected": [*user("a"), *said("b"), *user("x"), *said("y")]}) == [
            (user("a"), chosen[1:], [*said("b"), *user("x"), *said("y")])
        ]

    def test_shared_start_of_texts_ends_with_a_word(self):
        assert pairs({"chosen": "Q: a? A: yes indeed", "rejected": "Q: a? A: yellow"}) == [
            ("Q: a? A:", " yes indeed", " yellow")
        ]
        assert pairs({"chosen": "go on now", "rejected": "go on nowhere else"}) == [("go on", " now", " nowhere else")]

    def test_margins(self):
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        rows = [{**row, "margin": 2, "score_chosen": 9.0, "score_rejected": 1.0}, {**row, "margin": None}]
        assert [pair.margin for pair in pairs_of(table_of(rows, "mine", "train")).pairs] == [2.0, None]
        rows = [{**row, "score_chosen": 9.0, "score_rejected": 1.5}]
        assert [pair.margin for pair in pairs_of(table_of(rows, "mine", "train")).pairs] == [7.5]

    def test_a_margin_below_zero_is_none(self):
        with pytest.raises(DataError, match=r"column 'margin': below 0, rejected would be the better answer: -1\.0"):
            pairs({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1})

    def test_preferences(self):
        row = {"prompt": "a", "chosen": "b", "rejected": "c"}
        rows = [row, {**row, "preference": 0.5}, {**row, "preference": 0.9, "margin": 1}, {**row, "preference": None}]
        found = pairs_of(table_of(rows, "mine", "train")).pairs
        assert [pair.preference for pair in found] == [1, 0.5, 0.9, 1]

    @pytest.mark.parametrize(
        ("more", "words"),
        [
            ({"preference": 1.5}, "column 'preference': it is no probability: 1.5"),
            ({"preference": "tie"}, "column 'preference': expected a finite number: 'tie'"),
            ({"preference": 0.5, "margin": 2}, "chosen is not the better answer, and yet better by a margin of 2"),
        ],
    )
    def test_preferences_that_are_none(self, more, words):
        with pytest.raises(DataError, match=words):
            pairs({"prompt": "a", "chosen": "b", "rejected": "c", **more})

    def test_a_pair_knows_its_place(self):
        rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
        [pair] = pairs_of(table_of(rows, "mine", "train")).pairs
        assert pair.place == "data set 'mine', split 'train', row index 0"

    def test_prompts_alone_hold_no_preferences(self):
        with pytest.raises(DataError, match=r"its format, prompt/completion, holds no preferences"):
            pairs({"prompt": "a", "completion": "b"})


def message(name, parent, role, text, **more):
    return {
        "message_id": name,
        "parent_id": parent,
        "role": role,
        "text": text,
        "rank": None,
        "lang": "en",
        "deleted": False,
        **more,
    }


TREE = [
    message("a", None, "prompter", "hi"),
    message("b", "a", "assistant", "first", rank=1),
    message("c", "a", "assistant", "best", rank=0),
    message("d", "a", "assistant", "last", rank=2),
    message("e", "c", "prompter", "and?"),
    message("f", "e", "assistant", "gone", rank=0, deleted=True),
    message("g", "e", "assistant", "only", rank=1),
]


class TestTrees:
    def test_paths_that_end_with_the_prompter_are_prompts(self):
        prompts = prompt_set(TREE)
        batch = mix(prompts).take([0, 1], [0, 1])
        assert batch.inputs == [user("hi"), [*user("hi"), *said("best"), *user("and?")]]
        assert batch.columns == {
            "message_id": ["a", "e"],
            "rank": [None, None],
            "lang": ["en", "en"],
            "deleted": [False] * 2,
        }
        assert [prompts.position(number) for number in range(2)] == ["row index 0", "row index 4"]

    def test_ranks_of_siblings_give_pairs(self):
        assert [(chosen[0]["content"], rejected[0]["content"]) for _, chosen, rejected in pairs(*TREE)] == [
            ("best", "first"), ("best", "last"), ("first", "last"),
        ]  # fmt: skip
        assert pairs(*TREE)[0][0] == user("hi")

    def test_equal_ranks_prefer_nothing(self):
        rows = [TREE[0], TREE[1], {**TREE[2], "rank": 1}, TREE[3]]
        assert len(pairs(*rows)) == 2

    def test_order_of_rows_does_not_matter(self):
        assert sorted(map(str, pairs(*TREE[::-1]))) == sorted(map(str, pairs(*TREE)))

    def test_what_follows_a_deleted_message_is_left_out(self):
        rows = [*TREE, message("h", "f", "prompter", "still there?")]
        assert len(prompt_set(rows)) == 2


class TestPosts:
    row: ClassVar = {"subreddit": "r/cats", "title": "Cat", "post": "one\n\ntwo\n\nthree", "summary": "a cat"}
    head = "SUBREDDIT: r/cats\n\nTITLE: Cat\n\nPOST: "

    def test_prompt_ends_without_a_space_and_the_summary_begins_with_one(self):
        assert prompt_of(self.row) == (f"{self.head}one\n\ntwo\n\nthree\n\nTL;DR:", " a cat")

    @pytest.mark.parametrize(
        ("room", "post"), [(0, "one\n\ntwo\n\nthree"), (1, "one\n\ntwo"), (7, "one\n\ntwo"), (8, "one")]
    )
    def test_a_long_post_loses_its_last_paragraphs(self, room, post):
        # One token per character: `room` characters are missing.
        whole = len(f"{self.head}one\n\ntwo\n\nthree\n\nTL;DR:")
        prompts = prompt_set([self.row], max_prompt_length=whole - room)
        assert mix(prompts).take([0], [0]).inputs == [f"{self.head}{post}\n\nTL;DR:"]
        assert prompts.ids(0) == ids_of_text(f"{self.head}{post}\n\nTL;DR:")
        assert prompts.report.counts.shortened == (room > 0)

    def test_a_post_of_one_paragraph_is_too_long(self):
        with pytest.raises(DataError, match=r"column 'post': 56 tokens, and at most 50 are allowed"):
            prompt_set([{**self.row, "post": "onetwothree"}], max_prompt_length=50)

    def test_many_paragraphs_are_cut_by_bisection(self, monkeypatch):
        calls = []
        tokenizer = byte_tokenizer()
        encode = type(tokenizer).__call__
        monkeypatch.setattr(type(tokenizer), "__call__", lambda self, *a, **k: calls.append(1) or encode(self, *a, **k))
        prompts = prompt_set([{**self.row, "post": "a\n" * 5000}], max_prompt_length=100, tokenizer=tokenizer)
        assert len(prompts.ids(0)) in range(97, 101)
        assert len(calls) < 25

    def test_comparisons(self):
        info = {"subreddit": "cats", "title": "Cat", "post": "one", "article": None}
        row = {"info": info, "summaries": [{"text": "x"}, {"text": " y"}], "choice": 1}
        prompt = f"{self.head}one\n\nTL;DR:"
        assert pairs(row) == [(prompt, " y", " x")]
        assert prompt_of(row) == (prompt, None)
        news = {**row, "info": {**info, "post": None, "article": "news"}}
        assert prompt_of(news) == ("news\n\nTL;DR:", None)


class TestInstructions:
    def test_alpaca(self):
        assert prompt_of({"instruction": "add", "input": "1 2", "output": "3"}) == ("add\n1 2", "3")
        assert prompt_of({"instruction": "add", "input": "", "output": "3"}) == ("add", "3")
        assert prompt_of({"instruction": "add"}) == ("add", None)
        assert prompt_of({"instruction": " ", "input": "1 2", "output": "3"}) == ("1 2", "3")
        with pytest.raises(DataError, match="column 'instruction': the text is empty"):
            prompt_of({"instruction": " ", "input": "\n"})

    def test_alpaca_with_system_and_history(self):
        row = {"instruction": "c", "input": None, "system": "s", "history": [["a", "b"]]}
        chat = [{"role": "system", "content": "s"}, *user("a"), *said("b"), *user("c")]
        assert prompt_of(row) == (chat, None)

    def test_ultrafeedback_prefers_the_best_rated(self):
        answers = [("x", 5.0), ("y", 8.5), ("z", 8.5), ("w", 1.0)]
        row = {"instruction": "q", "completions": [{"response": r, "overall_score": s} for r, s in answers]}
        assert pairs(row) == [("q", "y", "x"), ("q", "y", "w")]
        found = pairs_of(table_of([row], "mine", "train"))
        assert [pair.margin for pair in found.pairs] == [3.5, 7.5]
        assert prompt_of(row) == ("q", None)


class TestTools:
    schema: ClassVar = {"type": "function", "function": {"name": "add", "parameters": {}}}

    def test_tools_of_the_row_reach_the_template(self):
        tokenizer = byte_tokenizer()
        tokenizer.chat_template = (
            "{% for t in tools or [] %}{{ t.function.name }};{% endfor %}{{ messages[0].content }}"
        )
        for tools in ([self.schema], '[{"type": "function", "function": {"name": "add"}}]'):
            assert prompt_set([{"prompt": user("hi"), "tools": tools}], tokenizer=tokenizer).ids(0) == ids_of_text(
                "add;hi"
            )
        assert prompt_set([{"prompt": user("hi"), "tools": None}], tokenizer=tokenizer).ids(0) == ids_of_text("hi")


def test_a_bad_value_names_what_a_conversion_read():
    with pytest.raises(BadValueError) as error:
        format_named("alpaca").prompt({"instruction": "a", "input": 3})
    assert (error.value.column, error.value.value) == ("input", 3)
