"""Prepared prompts: those that training would make on the fly, written whole or not at all, checked when opened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest

from nearstep.common.errors import ConfigError, DataError
from nearstep.config.prepare import PrepareOptions
from nearstep.data.encode import encode_prompts
from nearstep.data.files import chunks
from nearstep.data.load import load_rows
from nearstep.data.preparing import pool
from nearstep.data.preparing.run import prepare
from nearstep.data.stream import open_stream
from nearstep.data.templates import style_of, with_template
from tests.data.making import VOCAB_SIZE, framing_tokenizer, ids_of_text, mix, user
from tests.data.test_formats import TREE
from tests.tiny import byte_tokenizer


@pytest.fixture
def tokenizer_folder(tmp_path):
    return saved(byte_tokenizer(), tmp_path / "tokenizer")


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr("nearstep.data.files.parquet.CHUNK_ROWS", 3)


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return str(folder)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(source, tokenizer, output, *, told=None, **more):
    tell = (lambda line: None) if told is None else told.append
    return prepare(PrepareOptions(input=source, tokenizer=tokenizer, output=str(output), **more), tell)


def opened(folder, tokenizer=None, *, vocab_size=VOCAB_SIZE, **options):
    table = load_rows(str(folder), split="train", config=None)
    return encode_prompts(table, tokenizer or byte_tokenizer(), vocab_size=vocab_size, **options)


def everything(prompts):
    return mix(prompts).take(range(len(prompts)), range(len(prompts)))


CHAT = [*user("a"), {"role": "assistant", "content": "b"}]
POST = {"subreddit": "cats", "title": "Cat", "post": "one\n\ntwo\n\nthree", "summary": "a cat"}
SOURCES = {
    "text": [{"prompt": f"p{number}", "n": number} for number in range(10)],
    "completion": [{"prompt": "a", "completion": "b", "x": None}, {"prompt": "c", "completion": "d", "x": [1, 2]}],
    "mixed": [{"prompt": "a"}, {"prompt": user("b")}, {"prompt": "[1]"}, {"prompt": "c", "late": True}],
    "keys that differ": [
        {"prompt": "a", "x": {"k": 1}, "y": [{}]},
        {"prompt": "b", "x": {"l": 2.5}, "y": [{"m": None}]},
    ],
    "chat": [{"messages": [*CHAT, *user("c")]}, {"messages": CHAT}],
    "continued": [{"prompt": CHAT}],
    "tools": [{"prompt": user("a"), "tools": [{"function": {"name": "f"}}]}, {"prompt": user("b"), "tools": None}],
    "alpaca": [{"instruction": "a", "input": "b", "output": "c"}, {"instruction": "d", "input": "", "output": ""}],
    "posts": [POST, {**POST, "post": "short"}],
    "dialogues": [{"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}],
    "trees": TREE,
    "ids": [{"input_ids": [5, 6, 7], "n": 1}, {"input_ids": [8], "n": 2}],
    "ids and text": [{"input_ids": [5, 6], "attention_mask": [0, 1], "prompt": "shown"}],
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("prompt_type", ["none", "chat", "llama3"])
def test_prepared_prompts_are_those_made_on_the_fly(tmp_path, tokenizer_folder, small_chunks, source, prompt_type):
    path = write(tmp_path / "a.jsonl", SOURCES[source])
    # Room for the template and 55 characters, so that a post loses its last paragraph.
    limit = {"none": 55, "chat": 77, "llama3": 154}[prompt_type]
    prepared(path, tokenizer_folder, tmp_path / "out", prompt_type=prompt_type, max_length=limit)
    tokenizer = with_template(byte_tokenizer(), prompt_type)
    fly = encode_prompts(
        load_rows(path, split="train", config=None), tokenizer, vocab_size=VOCAB_SIZE, max_prompt_length=limit,
        on_long_prompt="drop", prompt_type=style_of(prompt_type),
    )  # fmt: skip
    assert everything(opened(tmp_path / "out", tokenizer)) == everything(fly)
    assert (fly.report.counts.shortened == 1) == (source == "posts")


@pytest.mark.parametrize("prompt_type", ["none", "raw", "raw_bos"])
def test_special_tokens_are_those_of_training(tmp_path, prompt_type):
    tokenizer = framing_tokenizer()
    path = write(tmp_path / "a.jsonl", SOURCES["text"])
    manifest = prepared(path, saved(tokenizer, tmp_path / "tokenizer"), tmp_path / "out", prompt_type=prompt_type)
    fly = encode_prompts(
        load_rows(path, split="train", config=None), tokenizer, vocab_size=VOCAB_SIZE, prompt_type=prompt_type
    )
    assert everything(opened(tmp_path / "out", tokenizer)) == everything(fly)
    assert manifest.eos_taken_off == (10 if prompt_type == "none" else 0)


def test_two_workers_write_what_one_writes(tmp_path, tokenizer_folder, small_chunks):
    rows = [*SOURCES["text"], {"prompt": ""}, {"n": 3}, *SOURCES["mixed"]] * 3
    path = write(tmp_path / "a.jsonl", rows)
    one = prepared(path, tokenizer_folder, tmp_path / "one", on_bad_row="drop")
    two = prepared(path, tokenizer_folder, tmp_path / "two", on_bad_row="drop", workers=2)
    assert one == two
    files = [{file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert files[0] == files[1]


def test_what_is_counted_and_told(tmp_path, tokenizer_folder, small_chunks):
    bad = [{"prompt": ""}, {"prompt": None}, {"prompt": 3}, {"prompt": "x" * 50}, {"prompt": "ok", "n": "\ud800"}]
    path = Path(write(tmp_path / "a.jsonl", [*SOURCES["text"], *bad]))
    path.write_text(path.read_text() + '{"prompt": \n')
    told = []
    manifest = prepared(
        str(path), tokenizer_folder, tmp_path / "out", told=told, on_bad_row="drop", max_length=40, log_interval=5
    )
    assert (manifest.rows_read, manifest.rows_written) == (16, 10)
    assert dict(manifest.left_out) == {
        "empty": 1, "without a value": 1, "of the wrong type": 1, "too long": 1, "with characters that are no text": 1,
        "unreadable in the file": 1,
    }  # fmt: skip
    assert manifest.left_out_first[0] == "line 11, column 'prompt': the text is empty: ''"
    assert manifest.tokens.total == sum(len(row["prompt"]) for row in SOURCES["text"])
    assert (manifest.tokens.shortest, manifest.tokens.median, manifest.tokens.longest) == (2, 2, 2)
    assert told[0] == f"{path}, split train: format prompt"
    assert [line.split(" rows,")[0] for line in told if "rows/s" in line][:3] == ["6", "12", "15"]
    assert any(line.startswith("10 of 16 rows prepared") for line in told)
    assert "10 of 16 rows; left out: " in opened(tmp_path / "out").report.sentences()[0]


def test_bad_rows_are_named_and_nothing_is_left_behind(tmp_path, tokenizer_folder, small_chunks):
    path = write(tmp_path / "a.jsonl", [*SOURCES["text"], {"prompt": "", "n": 1}])
    with pytest.raises(DataError, match=r"1 row of data set '.*a.jsonl', split 'train'.*\n  line 11, column 'prompt'"):
        prepared(path, tokenizer_folder, tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "tokenizer"]


def test_nothing_usable(tmp_path, tokenizer_folder):
    path = write(tmp_path / "a.jsonl", [{"prompt": ""}] * 3)
    with pytest.raises(DataError, match=r"none of the 3 rows of .* can be used: 3 empty"):
        prepared(path, tokenizer_folder, tmp_path / "out", on_bad_row="drop")


class TestFolders:
    def test_an_interrupted_run_leaves_what_was_there(self, tmp_path, tokenizer_folder, small_chunks):
        path = write(tmp_path / "a.jsonl", SOURCES["text"])
        prepared(path, tokenizer_folder, tmp_path / "out")
        before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}

        class Interrupting(list):
            def append(self, line):
                if "rows/s" in line:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepared(path, tokenizer_folder, tmp_path / "out", told=Interrupting(), log_interval=1, prompt_type="chat")
        assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "out", "tokenizer"]

    def test_prepared_data_give_way_and_other_files_do_not(self, tmp_path, tokenizer_folder):
        path = write(tmp_path / "a.jsonl", SOURCES["text"])
        for prompt_type in ("none", "chat"):
            manifest = prepared(path, tokenizer_folder, tmp_path / "out", prompt_type=prompt_type)
            assert json.loads((tmp_path / "out" / "manifest.json").read_text())["sha256"] == manifest.sha256
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("x")
        with pytest.raises(ConfigError, match="holds something else than prepared data"):
            prepared(path, tokenizer_folder, tmp_path / "mine")

    def test_leftovers_of_a_killed_run_are_removed(self, tmp_path, tokenizer_folder):
        (tmp_path / ".out.unfinished").mkdir()
        (tmp_path / ".out.unfinished" / "data-00000.arrow").write_text("half")
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        assert not (tmp_path / ".out.unfinished").exists()

    @pytest.mark.parametrize("damage", ["cut", "gone", "manifest"])
    def test_damage_is_named(self, tmp_path, tokenizer_folder, damage):
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        shard, manifest = tmp_path / "out" / "data-00000.arrow", tmp_path / "out" / "manifest.json"
        if damage == "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        elif damage == "gone":
            shard.unlink()
        else:
            manifest.write_text(manifest.read_text()[:-20])
        said = {
            "cut": r"'data-00000.arrow' has \d+ bytes, and \d+ were",
            "gone": "split 'train'",
            "manifest": "manifest",
        }
        with pytest.raises(DataError, match=said[damage]):
            opened(tmp_path / "out")

    def test_plain_datasets_opens_it(self, tmp_path, tokenizer_folder):
        prepared(write(tmp_path / "a.jsonl", SOURCES["mixed"]), tokenizer_folder, tmp_path / "out")
        dataset = datasets.load_from_disk(tmp_path / "out")
        assert dataset["prompt"][:] == [row["prompt"] for row in SOURCES["mixed"]]
        assert dataset[0]["input_ids"] == ids_of_text("a")
        assert dataset["late"][:] == [None, None, None, True]


def test_columns_whose_types_change_on_the_way(tmp_path, tokenizer_folder, small_chunks):
    values = [None, None, None, 1, 2, 3, 1.5, 2.5, 3.5, "text", {"a": [1]}, [1, "x"], 2**62, True, None]
    lists = [[], None, [1], [2.5], [3], [], [None], [1], [1], [2], [3], [4], [5], [6], [7]]
    rows = [{"prompt": "a", "value": v, "list": one} for v, one in zip(values, lists, strict=True)]
    manifest = prepared(write(tmp_path / "a.jsonl", rows), tokenizer_folder, tmp_path / "out")
    assert [shard.rows for shard in manifest.shards] == [15]
    columns = everything(opened(tmp_path / "out")).columns
    assert columns["value"] == values
    assert columns["list"] == lists


def test_numbers_that_no_file_holds(tmp_path, tokenizer_folder):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "n": [2**70]}, {"prompt": "b", "n": 1}])
    with pytest.raises(
        DataError, match=r"line 1, column 'n': it holds a number beyond 64 bits: \[1180591620717411303424\]"
    ):
        prepared(path, tokenizer_folder, tmp_path / "out")
    assert prepared(path, tokenizer_folder, tmp_path / "out", on_bad_row="drop").rows_written == 1


class TestOpening:
    def test_another_tokenizer_is_refused(self, tmp_path, tokenizer_folder):
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        for other in (byte_tokenizer(shift=1), framing_tokenizer()):
            with pytest.raises(DataError, match=r"prepared with the tokenizer '.*tokenizer'.*makes other ids"):
                opened(tmp_path / "out", other)

    def test_another_template_is_told(self, tmp_path, tokenizer_folder):
        prepared(write(tmp_path / "a.jsonl", SOURCES["chat"]), tokenizer_folder, tmp_path / "out")
        said = "prepared under another chat template"
        assert said in " ".join(opened(tmp_path / "out", with_template(byte_tokenizer(), "chatml")).report.sentences())
        assert said not in " ".join(opened(tmp_path / "out").report.sentences())
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        other = with_template(byte_tokenizer(), "chatml")
        assert said not in " ".join(opened(tmp_path / "out", other).report.sentences())

    def test_another_prompt_type_is_refused(self, tmp_path, tokenizer_folder):
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        with pytest.raises(ConfigError, match=r"prompt_type = chat, and .* was prepared with none"):
            opened(tmp_path / "out", prompt_type="chat")

    def test_ids_that_the_policy_does_not_know(self, tmp_path, tokenizer_folder):
        rows = [{"prompt": "a"}, {"prompt": "b<eos>"}, {"prompt": "c"}]
        prepared(write(tmp_path / "a.jsonl", rows), tokenizer_folder, tmp_path / "out")
        with pytest.raises(DataError, match=r"1 of 3 rows.*\n  row index 1, column 'input_ids': id 256 lies outside"):
            opened(tmp_path / "out", vocab_size=256)
        assert everything(opened(tmp_path / "out", vocab_size=256, on_bad_row="drop")).inputs == ["a", "c"]

    @pytest.mark.parametrize("rule", ["drop", "cut_left"])
    def test_long_prompts_as_on_the_fly(self, tmp_path, tokenizer_folder, rule):
        rows = [{"prompt": text} for text in ("abc", "abcdef", "abcd", "abcdefgh")]
        path = write(tmp_path / "a.jsonl", rows)
        prepared(path, tokenizer_folder, tmp_path / "out")
        options = {"max_prompt_length": 4, "on_long_prompt": rule}
        table = load_rows(path, split="train", config=None)
        fly = encode_prompts(table, byte_tokenizer(), vocab_size=VOCAB_SIZE, **options)
        found = opened(tmp_path / "out", **options)
        assert everything(found) == everything(fly)
        assert (found.report.dropped, found.report.counts.cut) == (fly.report.dropped, fly.report.counts.cut)

    def test_long_prompts_are_named(self, tmp_path, tokenizer_folder):
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        with pytest.raises(
            DataError, match=r"10 of 10 rows.*\n  row index 0, column 'input_ids': 2 tokens, and at most 1"
        ):
            opened(tmp_path / "out", max_prompt_length=1)

    def test_a_part(self, tmp_path, tokenizer_folder):
        path = write(tmp_path / "a.jsonl", SOURCES["text"])
        prepared(path, tokenizer_folder, tmp_path / "out", split="train[2:8]")
        table = load_rows(str(tmp_path / "out"), split="train[50%:]", config=None)
        found = encode_prompts(table, byte_tokenizer(), vocab_size=VOCAB_SIZE)
        assert everything(found).inputs == ["p5", "p6", "p7"]
        assert found.ids(1) == ids_of_text("p6")

    def test_as_a_stream(self, tmp_path, tokenizer_folder):
        prepared(write(tmp_path / "a.jsonl", SOURCES["text"]), tokenizer_folder, tmp_path / "out")
        rows = open_stream(str(tmp_path / "out"), split="train", config=None)
        assert rows.manifest is not None
        assert [row["prompt"] for _, row in rows.entries()] == [row["prompt"] for row in SOURCES["text"]]


class TestSamples:
    @pytest.mark.parametrize("wanted", [1, 4, 10, 30])
    def test_so_many_rows_drawn_by_the_seed_in_their_order(self, tmp_path, tokenizer_folder, small_chunks, wanted):
        path = write(tmp_path / "a.jsonl", SOURCES["text"])
        drawn = []
        for seed in (1, 1, 2):
            manifest = prepared(path, tokenizer_folder, tmp_path / "out", max_samples=wanted, seed=seed)
            assert manifest.rows_written == min(wanted, 10)
            drawn.append(everything(opened(tmp_path / "out")).columns["n"])
        assert drawn[0] == drawn[1] == sorted(drawn[0])
        assert len(set(drawn[0])) == min(wanted, 10)
        assert (drawn[0] != drawn[2]) or wanted >= 10 or wanted == 1

    def test_every_row_is_drawn_as_often(self, tmp_path, tokenizer_folder, small_chunks):
        path = write(tmp_path / "a.jsonl", [{"prompt": "a", "n": number} for number in range(4)])
        counts = [0] * 4
        for seed in range(60):
            prepared(path, tokenizer_folder, tmp_path / "out", max_samples=2, seed=seed)
            for number in datasets.load_from_disk(tmp_path / "out")["n"]:
                counts[number] += 1
        assert sum(counts) == 120
        assert all(15 <= count <= 45 for count in counts)


@pytest.mark.parametrize("kind", ["parquet", "csv", "json", "folder", "saved"])
def test_every_kind_of_source(tmp_path, tokenizer_folder, kind):
    dataset = datasets.Dataset.from_list([{"prompt": f"p{number}"} for number in range(7)])
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "csv":
        dataset.to_csv(path, index=False)
    elif kind == "json":
        path.write_text(json.dumps(list(dataset)))
    elif kind == "saved":
        dataset.save_to_disk(path)
    else:
        path.mkdir()
        dataset.select(range(3)).to_parquet(path / "train-0.parquet")
        dataset.select(range(3, 7)).to_parquet(path / "train-1.parquet")
    prepared(str(path), tokenizer_folder, tmp_path / "out")
    assert everything(opened(tmp_path / "out")).inputs == [f"p{number}" for number in range(7)]


def test_a_worker_that_dies_ends_the_run():
    with pytest.raises(DataError, match="a worker process died"):
        list(pool.in_order(os._exit, range(1, 5), workers=2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_leave_no_half_data_and_no_process(tmp_path, tokenizer_folder, number):
    path = write(tmp_path / "a.jsonl", [{"prompt": "word " * 400}] * 60_000)
    command = [
        sys.executable, "-m", "nearstep", "prepare", "--input", path, "--tokenizer", tokenizer_folder, "--output",
        str(tmp_path / "out"), "--workers", "2", "--log_interval", "1000",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while "rows/s" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(number)
        process.stderr.read()
        code = process.wait(timeout=60)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    assert not (tmp_path / "out").exists()
    if number != signal.SIGKILL:
        assert not (tmp_path / ".out.unfinished").exists()
    deadline = time.monotonic() + 30
    while _session(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _session(process.pid) == []


def _session(leader):
    """Processes of a session that still live."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def test_keywords_for_the_template_are_those_of_a_run_and_others_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ mood | default('') }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    rows = [{"messages": user("a"), "chat_template_kwargs": given} for given in (None, {"mood": "sad "})]
    path, told = write(tmp_path / "a.jsonl", rows), []
    given = {"mood": "glad ", "colour": 1}
    folder = saved(tokenizer, tmp_path / "tokenizer")
    prepared(path, folder, tmp_path / "out", told=told, chat_template_kwargs=given)
    assert "The chat template does not read colour of chat_template_kwargs." in " ".join(told).replace("'", "")
    for options in ({}, {"template_kwargs": given}):
        found = opened(tmp_path / "out", tokenizer, **options)
        assert [tokenizer.decode(found.ids(number)) for number in range(2)] == ["glad a", "sad a"]
        assert "chat_template_kwargs {'mood': 'glad ', 'colour': 1}" in found.report.sentences()[0]
    with pytest.raises(ConfigError, match=r"chat_template_kwargs = \{'mood': 'mad'\}, and .* was prepared with"):
        opened(tmp_path / "out", tokenizer, template_kwargs={"mood": "mad"})
