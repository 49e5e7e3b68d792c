"""Forty kinds of bad rows and more (R24): each is named in full, or dropped and counted where that is wished."""

import json
import re

import pytest

from nearstep.data.faults import Fault
from nearstep.data.load import load_rows, table_of
from nearstep.data.pairs import load_pairs, pairs_of
from nearstep.errors import DataError
from tests.data.making import PAD, VOCAB_SIZE, prompt_set, user
from tests.data.test_formats import TREE, message, said

ASSISTANT = said("done")
DIALOGUE = "\n\nHuman: hi\n\nAssistant: "
SCHEMA = [{"type": "function", "function": {"name": "add"}}]
CALL = [{"type": "function", "function": {"name": "subtract"}}]
DIALOGUES = {"chosen": DIALOGUE + "a", "rejected": DIALOGUE + "b"}
SHARED = {"conversations": [{"from": "human", "value": "a"}]}
POST = {"subreddit": "cats", "title": "Cat", "post": "one"}
ALPACA = {"instruction": "add", "input": "1 2"}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
CHAT_PAIR = {"prompt": user("a"), "chosen": said("b"), "rejected": said("c")}
RATED = {"instruction": "q", "completions": [{"response": r, "overall_score": s} for r, s in (("x", 1.0), ("y", 2.0))]}
COMPARED = {"info": POST, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 0}
LIMIT = 60

# A good row, what makes it bad, the column that is named, and the kind under which it is counted.
BAD_PROMPTS = [
    ({"prompt": "a"}, {"prompt": ...}, "prompt", Fault.NO_COLUMN),
    ({"prompt": "a"}, {"prompt": None}, "prompt", Fault.NO_VALUE),
    ({"prompt": "a"}, {"prompt": ""}, "prompt", Fault.EMPTY),
    ({"prompt": "a"}, {"prompt": " \n\t"}, "prompt", Fault.EMPTY),
    ({"prompt": "a"}, {"prompt": 7}, "prompt", Fault.TYPE),
    ({"prompt": "a"}, {"prompt": {"text": "a"}}, "prompt", Fault.TYPE),
    ({"prompt": "a"}, {"prompt": ["a", "b"]}, "prompt", Fault.TYPE),
    ({"prompt": "a"}, {"prompt": ["a", user("b")[0]]}, "prompt", Fault.TYPE),  # formats mixed in one value
    ({"prompt": "a"}, {"prompt": []}, "prompt", Fault.EMPTY),
    ({"prompt": "a"}, {"prompt": "half \ud800 pair"}, "prompt", Fault.TEXT),
    ({"prompt": "a"}, {"prompt": "a\0b"}, "prompt", Fault.TEXT),
    ({"prompt": "a"}, {"prompt": "x" * (LIMIT + 1)}, "prompt", Fault.LONG),
    ({"prompt": "a"}, {"prompt": "x" * 1_000_000}, "prompt", Fault.LONG),
    ({"prompt": user("a")}, {"prompt": user("")}, "prompt", Fault.EMPTY),
    ({"prompt": user("a")}, {"prompt": user(None)}, "prompt", Fault.TYPE),
    ({"prompt": user("a")}, {"prompt": user([{"type": "image"}])}, "prompt", Fault.TYPE),
    ({"prompt": user("a")}, {"prompt": [{"role": "human", "content": "x"}]}, "prompt", Fault.ROLE),
    ({"prompt": user("a")}, {"prompt": [{"content": "x"}]}, "prompt", Fault.ROLE),
    ({"prompt": user("a")}, {"prompt": [*user("x"), {"role": "system", "content": "s"}]}, "prompt", Fault.ROLE),
    ({"prompt": user("a")}, {"prompt": [{"role": "tool", "content": "42"}]}, "prompt", Fault.ROLE),
    ({"prompt": user("a")}, {"prompt": [*user("x"), *said("")]}, "prompt", Fault.ROLE),
    (
        {"prompt": user("a"), "tools": SCHEMA},
        {"prompt": [*user("a"), {"role": "assistant", "tool_calls": CALL}, {"role": "tool", "content": "2"}]},
        "prompt", Fault.TOOL,
    ),
    (
        {"prompt": user("a"), "tools": SCHEMA},
        {"prompt": [*user("a"), *ASSISTANT, {"role": "tool", "name": "divide", "content": "2"}]}, "prompt", Fault.TOOL,
    ),
    ({"prompt": user("a"), "tools": SCHEMA}, {"tools": "[{"}, "tools", Fault.TOOL),
    ({"prompt": user("a"), "tools": SCHEMA}, {"tools": {"name": "add"}}, "tools", Fault.TYPE),
    ({"prompt": user("a"), "tools": SCHEMA}, {"tools": [{"function": {}}]}, "tools", Fault.TOOL),
    ({"messages": user("a")}, {"messages": "a"}, "messages", Fault.TYPE),
    ({"messages": user("a")}, {"messages": ASSISTANT}, "messages", Fault.EMPTY),
    ({"query": "a"}, {"query": user("a")}, "query", Fault.TYPE),
    ({"input_ids": [5]}, {"input_ids": [VOCAB_SIZE]}, "input_ids", Fault.VOCABULARY),
    ({"input_ids": [5]}, {"input_ids": [-1]}, "input_ids", Fault.VOCABULARY),
    ({"input_ids": [5]}, {"input_ids": []}, "input_ids", Fault.EMPTY),
    ({"input_ids": [5]}, {"input_ids": [5, 6.0]}, "input_ids", Fault.TYPE),
    ({"input_ids": [5]}, {"input_ids": [5, PAD]}, "input_ids", Fault.PADDING),
    ({"input_ids": [5], "attention_mask": [1]}, {"attention_mask": [1, 1]}, "attention_mask", Fault.PADDING),
    (SHARED, {"conversations": [{"from": "me"}]}, "conversations", Fault.ROLE),
    (
        SHARED,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add("}]},
        "conversations", Fault.TOOL,
    ),
    (SHARED, {"conversations": None}, "conversations", Fault.NO_VALUE),
    (ALPACA, {"instruction": None}, "instruction", Fault.NO_VALUE),
    (ALPACA, {"input": 3}, "input", Fault.TYPE),
    (ALPACA, {"history": [["only a question"]]}, "history", Fault.TYPE),
    (POST, {"post": "  "}, "post", Fault.EMPTY),
    (POST, {"title": None}, "title", Fault.NO_VALUE),
    (DIALOGUES, {"chosen": "\n\nHuman: hi"}, "chosen", Fault.ROLE),
    ({"chosen": "a b", "rejected": "a c"}, {"rejected": "x y"}, "chosen", Fault.EMPTY),
    (TREE[0], message("z", "nowhere", "prompter", "x"), "parent_id", Fault.THREAD),
    (TREE[0], message("z", "z", "prompter", "x"), "parent_id", Fault.THREAD),
    (TREE[0], message("z", "a", "prompter", "x"), "role", Fault.ROLE),
    (TREE[0], message("z", None, "narrator", "x"), "role", Fault.ROLE),
    (TREE[0], message("z", None, "prompter", None), "text", Fault.NO_VALUE),
]  # fmt: skip
BAD_PAIRS = [
    (PAIR, {"chosen": ...}, "chosen", Fault.NO_COLUMN),
    (PAIR, {"rejected": None}, "rejected", Fault.NO_VALUE),
    (PAIR, {"chosen": ""}, "chosen", Fault.EMPTY),
    (PAIR, {"prompt": "\0"}, "prompt", Fault.TEXT),
    (PAIR, {"rejected": "\udfff"}, "rejected", Fault.TEXT),
    (PAIR, {"chosen": "c"}, "chosen", Fault.ALIKE),
    (PAIR, {"chosen": said("b")}, "rejected", Fault.TYPE),  # formats mixed in one row
    (PAIR, {"margin": float("nan")}, "margin", Fault.NUMBER),
    (PAIR, {"margin": "big"}, "margin", Fault.NUMBER),
    (PAIR, {"score_chosen": 1.0, "score_rejected": 2.0}, "score_chosen", Fault.NUMBER),
    (CHAT_PAIR, {"chosen": []}, "chosen", Fault.EMPTY),
    (CHAT_PAIR, {"chosen": user("b")}, "chosen", Fault.EMPTY),
    (CHAT_PAIR, {"rejected": said("b")}, "chosen", Fault.ALIKE),
    (CHAT_PAIR, {"rejected": [*said("x"), *user("y")]}, "rejected", Fault.ROLE),
    (CHAT_PAIR, {"chosen": [{"role": "assistant", "content": None}]}, "chosen", Fault.TYPE),
    (DIALOGUES, {"rejected": "\n\nHuman: no\n\nAssistant: b"}, "chosen", Fault.ROLE),
    (DIALOGUES, {"rejected": DIALOGUE + "a"}, "chosen", Fault.ALIKE),
    (RATED, {"completions": RATED["completions"][:1] * 2}, "completions", Fault.ALIKE),
    (RATED, {"completions": [{"response": "x", "overall_score": None}] * 2}, "overall_score", Fault.NUMBER),
    (RATED, {"completions": "x"}, "completions", Fault.TYPE),
    (COMPARED, {"choice": 2}, "choice", Fault.NUMBER),
    (COMPARED, {"summaries": [{"text": "x"}]}, "summaries", Fault.TYPE),
    (COMPARED, {"info": {"post": "x"}}, "info", Fault.TYPE),
]  # fmt: skip


def test_there_are_forty_kinds_and_all_faults_are_among_them():
    assert len(BAD_PROMPTS) + len(BAD_PAIRS) >= 40
    apart = {Fault.BROKEN, Fault.TEMPLATE}  # tested with files and with a template
    assert {fault for *_, fault in BAD_PROMPTS + BAD_PAIRS} | apart == set(Fault)


def rows_of(good, change):
    bad = {name: value for name, value in {**good, **change}.items() if value is not ...}
    return [good, bad]


def check_message(text, column):
    """Data set, split, row and column stand there, and no more than 200 characters of the value."""
    lines = text.splitlines()
    assert lines[0] == "1 of 2 rows of data set 'mine', split 'train', cannot be used:"
    found = re.fullmatch(rf"  row index 1, column {column!r}: (.*?): ([^:].*)", lines[1])
    assert found, lines[1]
    assert len(lines[1]) <= 200 + 250
    assert len(lines) > 2
    text.encode("utf-8")


@pytest.mark.parametrize(("good", "change", "column", "fault"), BAD_PROMPTS)
def test_bad_prompt(good, change, column, fault):
    rows = rows_of(good, change)
    with pytest.raises(DataError) as error:
        prompt_set(rows, max_prompt_length=LIMIT)
    check_message(str(error.value), column)
    report = prompt_set(rows, max_prompt_length=LIMIT, on_bad_row="drop").report
    assert [row.fault for row in report.bad] == [fault]
    assert (
        f"1 of 2 rows were left out: 1 {fault.value}. The first is row index 1, column {column!r}"
        in report.sentences()[0]
    )


@pytest.mark.parametrize(("good", "change", "column", "fault"), BAD_PAIRS)
def test_bad_pair(good, change, column, fault):
    table = table_of(rows_of(good, change), "mine", "train")
    with pytest.raises(DataError) as error:
        pairs_of(table)
    check_message(str(error.value), column)
    found = pairs_of(table, on_bad_row="drop")
    assert [row.fault for row in found.bad] == [fault]
    assert (len(found), found.rows) == (1, 2)
    assert f"1 rows were left out: 1 {fault.value}. The first is row index 1" in " ".join(found.sentences())


def test_a_message_that_stands_there_twice():
    rows = [TREE[0], TREE[0], message("y", None, "prompter", "hello")]
    assert [row.fault for row in prompt_set(rows, on_bad_row="drop").report.bad] == [Fault.THREAD] * 2


def test_the_name_of_a_column_is_its_owners(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"question": "a", "good": "b", "worse": "b"}))
    with pytest.raises(DataError, match="line 1, column 'good': chosen and rejected are the same answer"):
        load_pairs(str(path), columns={"prompt": "question", "chosen": "good", "rejected": "worse"})


@pytest.mark.parametrize(
    ("suffix", "content", "places"),
    [
        (
            ".jsonl",
            b'{"prompt": "a"}\n{"prompt"\n["b"]\n{"prompt": "\xff"}\n{"prompt": "b"}',
            ["line 2", "line 3", "line 4"],
        ),
        (
            ".csv",
            b'prompt,n\na,1\nb\n"c"x,1\nd\xff,1\n"two\nlines",2\ne,"cut',
            ["line 3", "line 4", "line 5", "line 8"],
        ),
        (".json", b'[{"prompt": "a"}, 3, {"prompt": "b"}]', ["row index 1"]),
    ],
)
def test_rows_that_cannot_be_read_are_dropped_too(tmp_path, suffix, content, places):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    table = load_rows(str(path), split="train", config=None, on_bad_row="drop")
    assert [row.place for row in table.broken] == places
    assert {row.fault for row in table.broken} == {Fault.BROKEN}
    assert len(table) == 2
    with pytest.raises(DataError, match=f"split 'train', {places[0]}"):
        load_rows(str(path), split="train", config=None)
