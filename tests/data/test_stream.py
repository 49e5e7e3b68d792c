"""Rows that are read while they are played: the same prompts as from a table, an exact position, honest errors."""

import json
from itertools import count, islice

import datasets
import pytest

from nearstep.common.errors import DataError
from nearstep.data.files import chunks
from nearstep.data.formats.plain import PROMPT
from nearstep.data.layout import Layout
from nearstep.data.load import load_rows
from nearstep.data.prompt_source import BatchPlan
from nearstep.data.prompt_stream import PromptStream, StreamSource
from nearstep.data.reader import PromptReader
from nearstep.data.row_errors import BadRow
from nearstep.data.stream import open_stream, stream_of
from nearstep.data.tokenise import PromptTokenizer
from tests.data.making import VOCAB_SIZE
from tests.tiny import byte_tokenizer


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 3)
    monkeypatch.setattr("nearstep.data.files.parquet.CHUNK_ROWS", 3)


def numbered(rows):
    return [{"prompt": f"prompt {number}", "number": number} for number in range(rows)]


def write(folder, kind, rows, name="a"):
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    elif kind == "csv":
        datasets.Dataset.from_list(rows).to_csv(path, index=False)
    else:
        end = {"jsonl": "\n", "json": ",\n  "}[kind]
        text = end.join(json.dumps(row) for row in rows)
        path.write_text(text if kind == "jsonl" else f"[{text}]\n")
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_streams_and_tables_hold_the_same_rows_at_the_same_places(tmp_path, kind, rows):
    write(tmp_path, kind, numbered(rows), name="a-0")
    write(tmp_path, kind, [{"prompt": 'ä\u2028\n"b", c' * 30, "number": 7}], name="a-1")
    table = load_rows(str(tmp_path), split="train", config=None)
    entries = list(open_stream(str(tmp_path), split="train", config=None).entries())
    assert [row for _, row in entries] == list(table.rows)
    assert [place for place, _ in entries] == [table.position(row) for row in range(len(table))]
    assert len(entries) == rows + 1


def test_saved_folders_and_objects_stream_too(tmp_path):
    dataset = datasets.Dataset.from_list(numbered(7))
    dataset.save_to_disk(tmp_path / "saved")
    for rows in (
        open_stream(str(tmp_path / "saved"), split="train", config=None),
        stream_of(dataset, "mine", "train"),
        stream_of(numbered(7), "mine", "train"),
        stream_of(dataset.to_iterable_dataset(), "mine", "train"),
    ):
        for number in (0, 1):
            assert list(rows.entries(number)) == [(f"row index {n}", row) for n, row in enumerate(numbered(7))]


def test_hub_data_sets_come_in_parts(monkeypatch):
    asked = []

    def load_dataset(*args, **options):
        asked.append(options)
        return datasets.Dataset.from_list(numbered(2)).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(list(open_stream("owner/data", split="train", config=None).entries())) == 2
    assert asked == [{"split": "train", "streaming": True}]


def stream_source(rows, *, on_bad_row="raise", told=None, skipped=0, buffer=1, weights=None, **options):
    """A source over one stream, or over several."""
    streams = []
    for each in rows if isinstance(rows, list) else [rows]:
        layout = Layout(PROMPT, has_ids=False)
        reader = PromptReader(layout, PromptTokenizer.of(byte_tokenizer(), VOCAB_SIZE), 60, "drop")
        tell = ([] if told is None else told).append
        streams.append(PromptStream(each, reader, on_bad_row, False, tell, skipped))
    play = BatchPlan(**{"seed": 5, "batch_size": 4, **options})
    return StreamSource(tuple(streams), weights or (1.0,) * len(streams), ["number"], play, buffer)


def numbers(prompts, *, after=0, until):
    return [number for batch in prompts.batches(after=after, until=until) for number in batch.columns["number"]]


def test_without_a_buffer_the_order_is_that_of_the_rows_pass_after_pass():
    assert numbers(stream_source(stream_of(numbered(6), "mine", "train")), until=3) == [*range(6), *range(6)]


def test_a_buffer_shuffles_every_pass_anew_and_loses_nothing():
    played = numbers(stream_source(stream_of(numbered(20), "mine", "train"), buffer=8), until=10)
    assert sorted(played[:20]) == sorted(played[20:]) == list(range(20))
    assert played[:20] != played[20:]
    assert played[:20] != list(range(20))
    assert all(number < place + 8 for place, number in enumerate(played[:20]))


@pytest.mark.parametrize("buffer", [1, 5])
@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_a_resumed_run_plays_what_the_unbroken_one_would_have(buffer, after):
    rows = stream_of(numbered(7), "mine", "train")
    options = {"buffer": buffer, "batch_size": 6, "num_generations": 2}
    whole = list(stream_source(rows, **options).batches(after=0, until=9))
    assert list(stream_source(rows, **options).batches(after=after, until=9)) == whole[after:]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_play_the_whole_batch(world_size):
    rows = stream_of(numbered(7), "mine", "train")
    whole = next(stream_source(rows, buffer=4).batches(after=2, until=3))
    parts = [
        next(stream_source(rows, buffer=4, rank=rank, world_size=world_size).batches(after=2, until=3))
        for rank in range(world_size)
    ]
    assert [text for part in parts for text in part.inputs] == whole.inputs
    assert [episode for part in parts for episode in part.episodes] == whole.episodes == list(range(8, 12))


def test_several_streams_take_turns_by_weight():
    rows = [stream_of(numbered(3), "a", "train"), stream_of([{"prompt": "b", "number": -1}], "b", "train")]
    for batch in stream_source(rows, weights=(3.0, 1.0)).batches(after=0, until=5):
        assert batch.columns["number"].count(-1) == 1


def test_an_endless_stream_is_read_no_further_than_it_is_played():
    read = []

    def rows():
        for number in count():
            read.append(number)
            yield {"prompt": f"prompt {number}", "number": number}

    endless = stream_of(datasets.IterableDataset.from_generator(rows), "mine", "train")
    assert numbers(stream_source(endless, buffer=2), until=3) != []
    assert len(read) < 2000


BAD = [*numbered(3), {"prompt": "", "number": 3}, {"prompt": "x" * 61, "number": 4}, {"number": 5}, {"prompt": "y"}]


def test_a_bad_row_is_named_when_it_is_reached(monkeypatch):
    monkeypatch.setattr("nearstep.data.reader.BATCH_ROWS", 2)
    batches = stream_source(stream_of(BAD, "mine", "train"), batch_size=2).batches(after=0, until=2)
    assert next(batches).columns["number"] == [0, 1]
    with pytest.raises(DataError, match=r"1 row of data set 'mine', split 'train'.*\n  row index 3, column 'prompt': "):
        next(batches)


def test_dropped_rows_are_counted_at_the_end_of_each_pass():
    told = []
    rows = stream_of(BAD, "mine", "train")
    assert numbers(stream_source(rows, on_bad_row="drop", told=told), until=2) == [0, 1, 2, None] * 2
    assert (
        told
        == ["3 of 7 rows of data set 'mine', split 'train', were left out: 1 empty, 1 too long, 1 without the column."]
        * 2
    )


def test_broken_lines_are_dropped_or_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a", "number": 0}\n{"prompt": \n\n{"prompt": "b", "number": 1}\n')
    rows = open_stream(str(path), split="train", config=None)
    assert [entry.place for entry in rows.entries() if isinstance(entry, BadRow)] == ["line 2"]
    assert numbers(stream_source(rows, on_bad_row="drop"), until=1) == [0, 1, 0, 1]
    with pytest.raises(DataError, match="line 2, character 12: no valid JSON"):
        numbers(stream_source(rows), until=1)


def test_a_stream_without_a_usable_row_ends_the_run():
    rows = stream_of([{"prompt": ""}] * 3, "mine", "train")
    with pytest.raises(DataError, match=r"none of the 3 rows of data set 'mine', split 'train', can be used: 3 empty"):
        numbers(stream_source(rows, on_bad_row="drop"), until=1)


def test_rows_that_are_held_out_are_never_played():
    rows = stream_of(numbered(5), "mine", "train")
    assert set(numbers(stream_source(rows, skipped=2), until=4)) == {2, 3, 4}


def test_columns_under_other_names():
    rows = stream_of([{"question": "a", "number": 1}], "mine", "train").with_columns({"prompt": "question"})
    assert list(islice(rows.entries(), 1)) == [("row index 0", {"prompt": "a", "number": 1})]
    bad = stream_of([{"question": "", "number": 1}], "mine", "train").with_columns({"prompt": "question"})
    with pytest.raises(DataError, match="row index 0, column 'question': the text is empty"):
        numbers(stream_source(bad), until=1)


@pytest.mark.parametrize("world_size", [1, 2])
def test_further_prompts_of_a_stream_come_next_and_a_run_goes_on_behind_them(world_size):
    """Batches of four; after the first two more: the next batch begins with the seventh."""

    def played(rank):
        source = stream_source(stream_of(numbered(40), "mine", "train"), buffer=3, rank=rank, world_size=world_size)
        batches = source.batches(after=0, until=3)
        first = next(batches)
        return [first, source.more([1, 3]), *batches]

    in_order = numbers(stream_source(stream_of(numbered(40), "mine", "train"), buffer=3), until=4)
    parts = [played(rank) for rank in range(world_size)]
    whole = [[number for part in parts for number in part[place].columns["number"]] for place in range(4)]
    assert whole == [in_order[:4], in_order[4:6], in_order[6:10], in_order[10:14]]
    assert sorted(episode for part in parts for batch in part for episode in batch.episodes) == list(range(14))
    for rank in range(world_size):
        again = stream_source(stream_of(numbered(40), "mine", "train"), buffer=3, rank=rank, world_size=world_size)
        assert list(again.batches(after=1, until=3, played=6)) == parts[rank][2:]


def test_more_prompts_of_a_stream_than_batches_were_read_ahead():
    source = stream_source(stream_of(numbered(40), "mine", "train"))
    for batch in source.batches(after=0, until=1):
        assert batch.columns["number"] == [0, 1, 2, 3]
        assert source.more([0, 2]).columns["number"] == [4, 5]
        assert source.more([0, 1, 3]).columns["number"] == [6, 7, 8]
