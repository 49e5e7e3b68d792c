"""Bad rows and broken files: each is refused, and data set, split, place and column are named (R24, R25)."""

import codecs
import gzip
import json

import datasets
import numpy
import pyarrow.parquet
import pytest
import torch

from nearstep.common.errors import DataError
from nearstep.data.encode import encode_prompts
from nearstep.data.load import load_rows, table_of
from nearstep.data.stream import open_stream
from tests.data.making import PAD, VOCAB_SIZE, prompt_set, user
from tests.tiny import byte_tokenizer

GOOD = {"prompt": "fine", "messages": user("fine"), "query": "fine", "input_ids": [5, 6]}
ASSISTANT = {"role": "assistant", "content": "done"}
TOOL = {"role": "tool", "content": "42"}
SYSTEM = {"role": "system", "content": "be kind"}

BAD_VALUES = [
    ("prompt", None, "there is no value"),
    ("prompt", "", "is empty"),
    ("prompt", " \n\t", "is empty"),
    ("prompt", 7, "found a value of type int"),
    ("prompt", b"bytes", "of type bytes"),
    ("prompt", {"role": "user", "content": "x"}, "of type dict"),
    ("prompt", ["a", "b"], "of type list"),
    ("prompt", [], "there is no message"),
    ("prompt", "half \ud800 pair", "half a surrogate pair ('\\ud800') at character 5"),
    ("prompt", "a\0b", "NUL at character 1"),
    ("prompt", "a" * 1_000_000, "1000000 tokens, and at most 50 are allowed"),
    ("prompt", user(None), "the content of message 1 of 1 is a value None"),
    ("prompt", user([{"type": "text", "text": "x"}]), "the content of message 1 of 1 is a value of type list"),
    ("messages", None, "there is no value"),
    ("messages", "text", "expected a list of messages, found a value of type str"),
    ("messages", [], "there is no message"),
    ("messages", [{"from": "human", "value": "x"}], "message 1 of 1 has the role None"),
    ("messages", [{"role": "human", "content": "x"}], "has the role 'human'"),
    ("messages", [{"role": "User", "content": "x"}], "has the role 'User'"),
    ("messages", [{"role": ["user"], "content": "x"}], "has the role ['user']"),
    ("messages", user(""), "the content of message 1 of 1 is empty"),
    ("messages", [ASSISTANT], "there is no message before the answer"),
    ("prompt", [*user("x"), {"role": "assistant", "content": " "}], "there is nothing to continue"),
    ("messages", [SYSTEM], "the last message is from 'system'"),
    ("messages", [*user("x"), SYSTEM, *user("y")], "message 2 of 3 is from 'system' and follows 'user'"),
    ("messages", [TOOL], "message 1 of 1 is from 'tool' and stands first"),
    ("messages", [*user("x"), TOOL], "message 2 of 2 is from 'tool' and follows 'user'"),
    ("messages", [*user("x"), {"role": "assistant", "content": None}, *user("y")], "message 2 of 3 is a value None"),
    ("messages", [SYSTEM, *user("a\0b")], "the content of message 2 of 2 has NUL"),
    ("messages", [{"role": "system", "content": "a\0"}, *user("b")], "the content of message 1 of 2 has NUL"),
    ("query", user("x"), "expected text, found a value of type list"),
    ("query", "", "is empty"),
    ("input_ids", None, "there is no value"),
    ("input_ids", [], "there is no token"),
    ("input_ids", torch.zeros(0, dtype=torch.long), "there is no token"),
    ("input_ids", "5 6", "found a value of type str"),
    ("input_ids", 5, "found a value of type int"),
    ("input_ids", [5, -1], "id -1 lies outside the policy's vocabulary of 300"),
    ("input_ids", [VOCAB_SIZE, 5], "id 300 lies outside the policy's vocabulary of 300"),
    ("input_ids", [5, 2**40], "id 1099511627776 lies outside"),
    ("input_ids", [5, 6.0], "item 1 (from 0) is a value of type float"),
    ("input_ids", [5, True], "item 1 (from 0) is a value of type bool"),
    ("input_ids", [5, None], "item 1 (from 0) is a value None"),
    ("input_ids", [[5], [6]], "item 0 (from 0) is a value of type list"),
    ("input_ids", torch.tensor([[5, 6]]), "found a value of type Tensor"),
    ("input_ids", numpy.array([5.0]), "item 0 (from 0) is a value of type float"),
    ("input_ids", [5, 6, PAD, PAD], "padding (id 257) at an end"),
    ("input_ids", [PAD, 5, 6], "padding (id 257) at an end"),
]


@pytest.mark.parametrize(("column", "value", "problem"), BAD_VALUES)
def test_bad_row_is_named(column, value, problem):
    rows = [{column: GOOD[column]}, {column: value}, {column: GOOD[column]}]
    with pytest.raises(DataError) as error:
        prompt_set(rows, max_prompt_length=50)
    said = str(error.value)
    assert said.startswith("1 of 3 rows of data set 'mine', split 'train', cannot be used:\n")
    assert f"\n  row index 1, column {column!r}: " in said
    assert problem in said
    assert len(said) < 600
    said.encode("utf-8")


@pytest.mark.parametrize(
    ("mask", "problem"),
    [
        ([1, 1], "expected 0 or 1 for each of the 3 token ids, found 2 items"),
        ([1, 1, 2], "expected 0 or 1"),
        ([1, 0, 1], "padding between tokens"),
        ("111", "found a value of type str"),
    ],
)
def test_bad_mask_is_named(mask, problem):
    with pytest.raises(DataError, match=r"row index 1, column 'attention_mask': .*" + problem):
        prompt_set([{"input_ids": [5]}, {"input_ids": [5, 6, 7], "attention_mask": mask}])


def test_mask_without_a_token():
    with pytest.raises(DataError, match=r"row index 0, column 'input_ids': there is no token"):
        prompt_set([{"input_ids": [5, 6], "attention_mask": [0, 0]}])


def test_shown_prompt_beside_ids_must_be_a_prompt():
    with pytest.raises(DataError, match=r"row index 1, column 'prompt': there is no value"):
        prompt_set([{"input_ids": [5], "prompt": "a"}, {"input_ids": [6], "prompt": None}])


def test_row_that_lacks_the_column_of_the_others():
    with pytest.raises(DataError, match=r"row index 1, column 'prompt': the row lacks this column: \{'text': 'b'\}"):
        prompt_set([{"prompt": "a"}, {"text": "b"}])


def test_no_row_has_a_prompt_column():
    with pytest.raises(DataError, match=r"'mine', split 'train': it has no column 'prompt'.*only \['text', 'n'\]"):
        prompt_set([{"text": "a", "n": 1}])


def test_chat_without_a_template():
    with pytest.raises(DataError, match=r"row index 1, column 'prompt'.*no chat template") as error:
        prompt_set([{"prompt": "text"}, {"prompt": user("hi")}], tokenizer=byte_tokenizer(chat=False))
    assert "Set tokenizer.chat_template" in str(error.value)


def test_chat_that_the_template_refuses():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match=r"row index 0, column 'messages'.*refuses.*roles must alternate"):
        prompt_set([{"messages": user("hi")}], tokenizer=tokenizer)


def test_tokenizer_larger_than_the_policy():
    with pytest.raises(DataError, match=r"row index 1.*id 256 lies outside the policy's vocabulary of 256"):
        prompt_set([{"prompt": "a"}, {"prompt": "a<eos>b"}], vocab_size=256)


def test_only_the_first_bad_rows_are_told_and_all_are_counted():
    with pytest.raises(DataError) as error:
        prompt_set([{"prompt": ""}, {"prompt": None}] * 4)
    said = str(error.value)
    assert said.startswith("8 of 8 rows")
    assert [f"row index {row}," in said for row in range(8)] == [True] * 5 + [False] * 3
    assert "… and 3 more" in said
    assert said.count("Take empty rows out.") == 1


def test_bad_row_of_a_data_set_with_a_column_of_nothing():
    table = table_of(datasets.Dataset.from_list([{"prompt": None}, {"prompt": None}]), "mine", "train")
    with pytest.raises(DataError, match=r"2 of 2 rows.*\n  row index 0, column 'prompt': there is no value"):
        encode_prompts(table, byte_tokenizer(), vocab_size=VOCAB_SIZE)


LINE = b'{"prompt": "fine"}\n'
BROKEN_FILES = [
    (".jsonl", LINE + b'{"prompt": "cut', "line 2, character 12: no valid JSON"),
    (".jsonl", LINE + b"\r\n" + b"{prompt: 1}\r\n", "line 3, character 2: no valid JSON"),
    (".jsonl", LINE + b'{"prompt": "a"} {"prompt": "b"}\n', "line 2, character 17: no valid JSON (Extra data)"),
    (".jsonl", LINE + b'["prompt"]\n', "line 2: expected an object"),
    (".jsonl", LINE + b'"prompt"\n', "line 2: expected an object"),
    (".jsonl", LINE + b'{"prompt": "\xff"}\n', "line 2: byte 13 (0xff) is no UTF-8"),
    (".jsonl", b'\xef\xbb\xbf{"prompt": "\xe4"}\n', "line 1: byte 13 (0xe4) is no UTF-8"),
    (".jsonl", codecs.BOM_UTF16_LE + LINE.decode().encode("utf-16-le"), "line 1: byte 1 (0xff) is no UTF-8"),
    (".jsonl", LINE + b"[" * 100_000 + b"\n", "line 2: JSON that cannot be read"),
    (".jsonl", LINE + b'{"prompt": ' + b"1" * 5000 + b"}\n", "line 2: JSON that cannot be read"),
    (".jsonl", LINE + b'{"prompt": "a\tb"}\n', "line 2, character 14: no valid JSON"),
    (".jsonl", b"\x1f\x8b\x08\x00", "line 1: byte 2 (0x8b) is no UTF-8"),
    (".jsonl", b"", "has no rows"),
    (".jsonl", b"\n \n", "has no rows"),
    (".json", b'[{"prompt": "a"},\n{"prompt"}]', "line 2, character 10: no valid JSON"),
    (".json", b'[{"prompt": "a"}, 3]', "row index 1: expected an object"),
    (".json", b'{"prompt": "a"}', "line 1: expected a list of objects"),
    (".json", LINE + LINE, "line 2, character 1: no valid JSON (Extra data)"),
    (".json", b'[{"prompt": "a"},\n {"pro', "line 2, character 3: the file ends in the middle of a value, as if cut"),
    (".json", b'[{"prompt": "a"},\n', "line 2, character 1: the file ends in the middle of a value, as if cut"),
    (".json", b'[{"prompt": "a"}\n', "line 2, character 1: the file ends in the middle of a value, as if cut"),
    (".json", b'[{"prompt": "a"},\n {"prompt": "\xff"}]', "line 2: byte 14 (0xff) is no UTF-8"),
    (".json", b'[{"n": ' + b"1" * 5000 + b"}]", "JSON that cannot be read"),
    (".json", b"", "has no rows"),
    (".json", b"[]", "has no rows"),
    (".csv", b'prompt,n\na,1\nb,"cut', "line 3: no valid CSV"),
    (".csv", b"prompt,n\na,1\n\nb\n", "line 4: 1 cells for 2 columns ('prompt', 'n')"),
    (".csv", b"prompt,n\na,b,1\n", "line 2: 3 cells for 2 columns"),
    (".csv", b"prompt,prompt\na,b\n", "line 1: every column needs a name of its own"),
    (".csv", b"prompt,\na,b\n", "line 1: every column needs a name of its own"),
    (".csv", b"prompt\na\nb\xff\n", "line 3, column 'prompt': byte 2 (0xff) is no UTF-8"),
    (".csv", b"prompt\n" + b"a" * 200_000 + b"\n", "line 2: no valid CSV (field larger"),
    (".csv", b"", "has no rows"),
    (".csv", b"prompt\n", "has no rows"),
    (".csv", b"prompt,\xff\na,b\n", "line 1: byte 8 (0xff) is no UTF-8"),
    (".parquet", b"", "file 'bad.parquet': no readable Parquet: Parquet file size is 0 bytes. Copy it again"),
    (".parquet", b"PAR1 and then nothing PAR1", "file 'bad.parquet': no readable Parquet: "),
    (".parquet", b"PAR1 and then", "no readable Parquet: Parquet magic bytes not found in footer"),
    (".txt", b"a prompt\n", "cannot read files of the kind '.txt'"),
    (".jsonl.gz", b"\x1f\x8b\x08\x00", "file 'bad.jsonl.gz': cannot be unpacked (Compressed file ended before"),
    (".jsonl.gz", b'{"prompt": "a"}\n', "file 'bad.jsonl.gz': cannot be unpacked (Not a gzipped file"),
    (".json.gz", gzip.compress(b"[" * 99, mtime=0)[:-4], "cannot be unpacked (Compressed file ended before"),
    (
        ".csv.gz",
        gzip.compress(b"prompt\n", mtime=0)[:10] + b"\xff" * 20,
        "cannot be unpacked (Error -3 while decompressing",
    ),
    (".jsonl.gz", gzip.compress(b'{"prompt": "a"}\n{]\n', mtime=0), "line 2, character 2: no valid JSON"),
    (".jsonl.zst", b"x", "cannot read files of the kind '.jsonl.zst', only .jsonl, .json, .csv, .parquet (.jsonl.gz, "),
    (".parquet.gz", b"x", "cannot read files of the kind '.parquet.gz'"),
    (".zip", b"PK", "cannot read files of the kind '.zip'"),
]


@pytest.mark.parametrize(("suffix", "content", "problem"), BROKEN_FILES)
def test_broken_file_is_named(tmp_path, suffix, content, problem):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_rows(str(path), split="train", config=None)
    said = str(error.value)
    assert said.startswith(f"data set {str(path)!r}, split 'train'")
    assert problem in said
    assert len(said) < 600 + len(str(path))


def test_damage_within_parquet_is_named_by_bytes_column_and_rows(tmp_path):
    rows = datasets.Dataset.from_list([{"number": n, "prompt": f"{n} is a number"} for n in range(100)])
    path = tmp_path / "a.parquet"
    rows.to_parquet(path, batch_size=50)
    column = pyarrow.parquet.read_metadata(path).row_group(1).column(1)
    start, size = column.dictionary_page_offset, column.total_compressed_size
    content = bytearray(path.read_bytes())
    content[start : start + size] = bytes(size)
    path.write_bytes(content)
    place = f"bytes {start + 1:,} to {start + size:,}, column 'prompt' of row index 50 to 99"
    with pytest.raises(DataError, match=f"file 'a.parquet': no readable Parquet: {place} "):
        load_rows(str(path), split="train", config=None)
    with pytest.raises(DataError, match=f"file 'a.parquet': no readable Parquet: {place} "):
        list(open_stream(str(path), split="train", config=None).chunks(0))


def test_bad_file_of_a_folder_is_named(tmp_path):
    (tmp_path / "a-0.jsonl").write_bytes(LINE)
    (tmp_path / "a-1.jsonl").write_bytes(LINE + b"{]\n")
    with pytest.raises(DataError, match=r"split 'train', file 'a-1.jsonl', line 2, character 2: no valid JSON"):
        load_rows(str(tmp_path), split="train", config=None)


def test_bad_row_of_a_file_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": text}) for text in ["a", "b", "\ud800"]))
    table = load_rows(str(path), split="train", config=None)
    with pytest.raises(DataError, match=r"a\.jsonl', split 'train', cannot be used:\n  line 3, column 'prompt'"):
        encode_prompts(table, byte_tokenizer(), vocab_size=VOCAB_SIZE)
