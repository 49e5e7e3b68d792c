"""Forty kinds of bad rows and more (R24): each is named in full, or dropped and counted where the setting says so."""

import json
import re

import pytest

from nearstep.common.errors import DataError
from nearstep.data.load import load_rows, table_of
from nearstep.data.pairs import load_pairs, pairs_of
from nearstep.data.row_errors import RowError
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
    ({"prompt": "a"}, {"prompt": ...}, "prompt", RowError.NO_COLUMN),
    ({"prompt": "a"}, {"prompt": None}, "prompt", RowError.NO_VALUE),
    ({"prompt": "a"}, {"prompt": ""}, "prompt", RowError.EMPTY),
    ({"prompt": "a"}, {"prompt": " \n\t"}, "prompt", RowError.EMPTY),
    ({"prompt": "a"}, {"prompt": 7}, "prompt", RowError.TYPE),
    ({"prompt": "a"}, {"prompt": {"text": "a"}}, "prompt", RowError.TYPE),
    ({"prompt": "a"}, {"prompt": ["a", "b"]}, "prompt", RowError.TYPE),
    ({"prompt": "a"}, {"prompt": ["a", user("b")[0]]}, "prompt", RowError.TYPE),  # formats mixed in one value
    ({"prompt": "a"}, {"prompt": []}, "prompt", RowError.EMPTY),
    ({"prompt": "a"}, {"prompt": "half \ud800 pair"}, "prompt", RowError.TEXT),
    ({"prompt": "a"}, {"prompt": "a\0b"}, "prompt", RowError.TEXT),
    ({"prompt": "a"}, {"prompt": "x" * (LIMIT + 1)}, "prompt", RowError.LONG),
    ({"prompt": "a"}, {"prompt": "x" * 1_000_000}, "prompt", RowError.LONG),
    ({"prompt": user("a")}, {"prompt": user("")}, "prompt", RowError.EMPTY),
    ({"prompt": user("a")}, {"prompt": user(None)}, "prompt", RowError.TYPE),
    ({"prompt": user("a")}, {"prompt": user([{"type": "image"}])}, "prompt", RowError.TYPE),
    ({"prompt": user("a")}, {"prompt": [{"role": "human", "content": "x"}]}, "prompt", RowError.ROLE),
    ({"prompt": user("a")}, {"prompt": [{"content": "x"}]}, "prompt", RowError.ROLE),
    ({"prompt": user("a")}, {"prompt": [*user("x"), {"role": "system", "content": "s"}]}, "prompt", RowError.ROLE),
    ({"prompt": user("a")}, {"prompt": [{"role": "tool", "content": "42"}]}, "prompt", RowError.ROLE),
    ({"prompt": user("a")}, {"prompt": [*user("x"), *said("")]}, "prompt", RowError.ROLE),
    (
        {"prompt": user("a"), "tools": SCHEMA},
        {"prompt": [*user("a"), {"role": "assistant", "tool_calls": CALL}, {"role": "tool", "content": "2"}]},
        "prompt", RowError.TOOL,
    ),
    (
        {"prompt": user("a"), "tools": SCHEMA},
        {"prompt": [*user("a"), *ASSISTANT, {"role": "tool", "name": "divide", "content": "2"}]},
        "prompt", RowError.TOOL,
    ),
    ({"prompt": user("a"), "tools": SCHEMA}, {"tools": "[{"}, "tools", RowError.TOOL),
    ({"prompt": user("a"), "tools": SCHEMA}, {"tools": {"name": "add"}}, "tools", RowError.TYPE),
    ({"prompt": user("a"), "tools": SCHEMA}, {"tools": [{"function": {}}]}, "tools", RowError.TOOL),
    ({"messages": user("a")}, {"messages": "a"}, "messages", RowError.TYPE),
    ({"messages": user("a")}, {"messages": ASSISTANT}, "messages", RowError.EMPTY),
    ({"query": "a"}, {"query": user("a")}, "query", RowError.TYPE),
    ({"input_ids": [5]}, {"input_ids": [VOCAB_SIZE]}, "input_ids", RowError.VOCABULARY),
    ({"input_ids": [5]}, {"input_ids": [-1]}, "input_ids", RowError.VOCABULARY),
    ({"input_ids": [5]}, {"input_ids": []}, "input_ids", RowError.EMPTY),
    ({"input_ids": [5]}, {"input_ids": [5, 6.0]}, "input_ids", RowError.TYPE),
    ({"input_ids": [5]}, {"input_ids": [5, PAD]}, "input_ids", RowError.PADDING),
    ({"input_ids": [5], "attention_mask": [1]}, {"attention_mask": [1, 1]}, "attention_mask", RowError.PADDING),
    (SHARED, {"conversations": [{"from": "me"}]}, "conversations", RowError.ROLE),
    (
        SHARED,
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "add("}]},
        "conversations", RowError.TOOL,
    ),
    (SHARED, {"conversations": None}, "conversations", RowError.NO_VALUE),
    (ALPACA, {"instruction": None}, "instruction", RowError.NO_VALUE),
    (ALPACA, {"input": 3}, "input", RowError.TYPE),
    (ALPACA, {"history": [["only a question"]]}, "history", RowError.TYPE),
    (POST, {"post": "  "}, "post", RowError.EMPTY),
    (POST, {"title": None}, "title", RowError.NO_VALUE),
    (DIALOGUES, {"chosen": "\n\nHuman: hi"}, "chosen", RowError.ROLE),
    ({"chosen": "a b", "rejected": "a c"}, {"rejected": "x y"}, "chosen", RowError.EMPTY),
    (TREE[0], message("z", "nowhere", "prompter", "x"), "parent_id", RowError.THREAD),
    (TREE[0], message("z", "z", "prompter", "x"), "parent_id", RowError.THREAD),
    (TREE[0], message("z", "a", "prompter", "x"), "role", RowError.ROLE),
    (TREE[0], message("z", None, "narrator", "x"), "role", RowError.ROLE),
    (TREE[0], message("z", None, "prompter", None), "text", RowError.NO_VALUE),
]  # fmt: skip
BAD_PAIRS = [
    (PAIR, {"chosen": ...}, "chosen", RowError.NO_COLUMN),
    (PAIR, {"rejected": None}, "rejected", RowError.NO_VALUE),
    (PAIR, {"chosen": ""}, "chosen", RowError.EMPTY),
    (PAIR, {"prompt": "\0"}, "prompt", RowError.TEXT),
    (PAIR, {"rejected": "\udfff"}, "rejected", RowError.TEXT),
    (PAIR, {"chosen": "c"}, "chosen", RowError.ALIKE),
    (PAIR, {"chosen": said("b")}, "rejected", RowError.TYPE),  # formats mixed in one row
    (PAIR, {"margin": float("nan")}, "margin", RowError.NUMBER),
    (PAIR, {"margin": "big"}, "margin", RowError.NUMBER),
    (PAIR, {"score_chosen": 1.0, "score_rejected": 2.0}, "score_chosen", RowError.NUMBER),
    (CHAT_PAIR, {"chosen": []}, "chosen", RowError.EMPTY),
    (CHAT_PAIR, {"chosen": user("b")}, "chosen", RowError.EMPTY),
    (CHAT_PAIR, {"rejected": said("b")}, "chosen", RowError.ALIKE),
    (CHAT_PAIR, {"rejected": [*said("x"), *user("y")]}, "rejected", RowError.ROLE),
    (CHAT_PAIR, {"chosen": [{"role": "assistant", "content": None}]}, "chosen", RowError.TYPE),
    (DIALOGUES, {"rejected": "\n\nHuman: no\n\nAssistant: b"}, "chosen", RowError.ROLE),
    (DIALOGUES, {"rejected": DIALOGUE + "a"}, "chosen", RowError.ALIKE),
    (RATED, {"completions": RATED["completions"][:1] * 2}, "completions", RowError.ALIKE),
    (RATED, {"completions": [{"response": "x", "overall_score": None}] * 2}, "overall_score", RowError.NUMBER),
    (RATED, {"completions": "x"}, "completions", RowError.TYPE),
    (COMPARED, {"choice": 2}, "choice", RowError.NUMBER),
    (COMPARED, {"summaries": [{"text": "x"}]}, "summaries", RowError.TYPE),
    (COMPARED, {"info": {"post": "x"}}, "info", RowError.TYPE),
]  # fmt: skip


def test_there_are_forty_kinds_and_all_faults_are_among_them():
    assert len(BAD_PROMPTS) + len(BAD_PAIRS) >= 40
    apart = {RowError.BROKEN, RowError.TEMPLATE}  # tested with files and with a template
    assert {row_error for *_, row_error in BAD_PROMPTS + BAD_PAIRS} | apart == set(RowError)


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


@pytest.mark.parametrize(("good", "change", "column", "row_error"), BAD_PROMPTS)
def test_bad_prompt(good, change, column, row_error):
    rows = rows_of(good, change)
    with pytest.raises(DataError) as error:
        prompt_set(rows, max_prompt_length=LIMIT)
    check_message(str(error.value), column)
    report = prompt_set(rows, max_prompt_length=LIMIT, on_bad_row="drop").report
    assert [row.row_error for row in report.bad] == [row_error]
    assert (
        f"1 of 2 rows were left out: 1 {row_error.value}. The first is row index 1, column {column!r}"
        in report.sentences()[0]
    )


@pytest.mark.parametrize(("good", "change", "column", "row_error"), BAD_PAIRS)
def test_bad_pair(good, change, column, row_error):
    table = table_of(rows_of(good, change), "mine", "train")
    with pytest.raises(DataError) as error:
        pairs_of(table)
    check_message(str(error.value), column)
    found = pairs_of(table, on_bad_row="drop")
    assert [row.row_error for row in found.bad] == [row_error]
    assert (len(found), found.rows) == (1, 2)
    assert f"1 rows were left out: 1 {row_error.value}. The first is row index 1" in " ".join(found.sentences())


def test_a_message_that_stands_there_twice():
    rows = [TREE[0], TREE[0], message("y", None, "prompter", "hello")]
    assert [row.row_error for row in prompt_set(rows, on_bad_row="drop").report.bad] == [RowError.THREAD] * 2


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
    assert {row.row_error for row in table.broken} == {RowError.BROKEN}
    assert len(table) == 2
    with pytest.raises(DataError, match=f"split 'train', {places[0]}"):
        load_rows(str(path), split="train", config=None)


HUGE = "x" * 1_000_000
HUGE_ROWS = {
    "role": {"prompt": [{"role": HUGE, "content": "a"}]},
    "no role": {"prompt": [{"role": {"a": HUGE}, "content": "a"}]},
    "tool": {"prompt": [*user("a"), *ASSISTANT, {"role": "tool", "name": HUGE, "content": "2"}], "tools": SCHEMA},
    "tools": {
        "prompt": [*user("a"), {"role": "assistant", "tool_calls": CALL}],
        "tools": [{"function": {"name": f"{HUGE}{number}"}} for number in range(3)],
    },
    "tools without a name": {"prompt": user("a"), "tools": [HUGE]},
    "key": {"prompt": [{HUGE: "user"}]},
    "speaker": {"conversations": [{"from": HUGE, "value": "a"}]},
    "keywords": {"prompt": user("a"), "chat_template_kwargs": HUGE},
    "no known column": {HUGE: "a"},
    "parent": {**TREE[0], "parent_id": HUGE},
    "ids": {"input_ids": [HUGE]},
}


@pytest.mark.parametrize("row", HUGE_ROWS.values(), ids=HUGE_ROWS)
def test_a_value_of_a_megabyte_never_reaches_the_screen(row):
    with pytest.raises(DataError) as error:
        prompt_set([row])
    assert len(str(error.value)) < 3_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", HUGE), ("a.jsonl", json.dumps([HUGE])), ("a.jsonl", '{"prompt": "' + HUGE), ("a.json", HUGE),
        ("a.json", json.dumps({HUGE: 1})), ("a.csv", f"{HUGE[:90_000]},{HUGE[:90_000]}\n"),
        ("a.csv", f"a,b\n{HUGE[:90_000]}"),
    ],
)  # fmt: skip
def test_nor_does_a_file_that_is_broken_by_one(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as error:
        load_rows(str(tmp_path / name), split="train", config=None)
    assert len(str(error.value)) < 3_000


def test_names_of_a_megabyte():
    for name, split, config in ((HUGE, "train", None), (f"a/{HUGE}.jsonl", "train", None), (".", HUGE, None)):
        with pytest.raises(DataError) as error:
            load_rows(name, split=split, config=config)
        assert len(str(error.value)) < 7_000
