"""Folders laid out as hubs store data sets: configurations, splits, shards and packed files."""

import gzip
import json

import datasets
import pytest

from nearstep.common.errors import DataError
from nearstep.data.load import load_rows
from nearstep.data.stream import open_stream


def made(folder, *names):
    """A file of one row at each place; the row holds the place."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"prompt": name}
        if name.endswith(".parquet"):
            datasets.Dataset.from_list([row]).to_parquet(path)
            continue
        kind = name.removesuffix(".gz").rpartition(".")[2]
        text = {"jsonl": json.dumps(row) + "\n", "json": json.dumps([row]), "csv": f"prompt\n{name}\n"}.get(kind, "")
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


def read(folder, split="train", config=None):
    """The places whose files make up a split, the same whether read as a table or as a stream."""
    found = [row["prompt"] for row in load_rows(str(folder), split=split, config=config).rows]
    assert found == [row["prompt"] for _, row in open_stream(str(folder), split=split, config=config).entries()]
    return found


LAYOUTS = {
    "shards": (
        ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"),
        {"train": ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"),
         "test": ("test-00000-of-00001.parquet",)},
    ),
    "data": (("data/train-00000-of-00001-0123456789abcdef.parquet",),
             {"train": ("data/train-00000-of-00001-0123456789abcdef.parquet",)}),
    "two unknown words": (("descriptiveness-00000-of-00001.parquet", "sentiment-00000-of-00001.parquet"),
                          {"descriptiveness": ("descriptiveness-00000-of-00001.parquet",),
                           "sentiment": ("sentiment-00000-of-00001.parquet",)}),
    "a file held out": (("train.jsonl", "heldout.jsonl"), {"train": ("train.jsonl",), "heldout": ("heldout.jsonl",)}),
    "ultrachat": (("data/train_sft-00000-of-00001.parquet", "data/train_gen-00000-of-00001.parquet",
                   "data/test_sft-00000-of-00001.parquet"),
                  {"train_sft": ("data/train_sft-00000-of-00001.parquet",),
                   "test_sft": ("data/test_sft-00000-of-00001.parquet",),
                   "test": ("data/test_sft-00000-of-00001.parquet",)}),
    "gzip": (("train.jsonl.gz", "test.csv.gz", "dev.json.gz"),
             {"train": ("train.jsonl.gz",), "test": ("test.csv.gz",), "validation": ("dev.json.gz",)}),
    "packed and not": (("train-0.jsonl", "train-1.jsonl.gz"), {"train": ("train-0.jsonl", "train-1.jsonl.gz")}),
    "folders of splits": (("train/0000.parquet", "train/0001.parquet", "valid/0000.parquet"),
                          {"train": ("train/0000.parquet", "train/0001.parquet"), "valid": ("valid/0000.parquet",),
                           "validation": ("valid/0000.parquet",)}),
    "numbers": (("0000.jsonl", "0001.jsonl"), {"train": ("0000.jsonl", "0001.jsonl")}),
    "one unknown word": (("posts-0.jsonl", "posts-1.jsonl"), {"train": ("posts-0.jsonl", "posts-1.jsonl")}),
    "words around": (("my_train_data.jsonl", "my_test_data.jsonl"),
                     {"train": ("my_train_data.jsonl",), "test": ("my_test_data.jsonl",)}),
    "notes": (("train.jsonl", "README.md", "dataset_infos.json", ".hidden.jsonl", "__x__.jsonl", "LICENSE.txt"),
              {"train": ("train.jsonl",)}),
}  # fmt: skip


@pytest.mark.parametrize(("files", "splits"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_split_has_its_files_and_no_others(tmp_path, files, splits):
    made(tmp_path, *files)
    assert {split: tuple(read(tmp_path, split)) for split in splits} == splits


@pytest.mark.parametrize(
    ("files", "split", "said"),
    [
        (("descriptiveness.jsonl", "sentiment.jsonl"), "train", "no such split, only ['descriptiveness', 'sentiment']"),
        (("train_sft.jsonl", "train_gen.jsonl"), "train", "no such split, only ['train_gen', 'train_sft']"),
        (("test.jsonl",), "train", "no such split, only ['test']"),
        (("train.jsonl", "posts.jsonl"), "test", "no such split, only ['posts', 'train']"),
        (("train.jsonl.zst",), "train", "holds no file that ends in .jsonl, .json, .csv, .parquet"),
        (("train.jsonl.zst",), "train", "It holds ['train.jsonl.zst']: unpack or convert what is data"),
        (("test.jsonl", "train.zip"), "train", "only ['test']. It also holds ['train.zip'], which cannot be read"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(tmp_path, files, split, said):
    made(tmp_path, *files)
    with pytest.raises(DataError) as refusal:
        load_rows(str(tmp_path), split=split, config=None)
    assert said in str(refusal.value)


class TestConfigurations:
    def test_subfolders_are_configurations(self, tmp_path):
        made(tmp_path, "helpful-base/train.jsonl.gz", "helpful-base/test.jsonl.gz", "harmless-base/train.jsonl.gz")
        assert read(tmp_path, config="helpful-base") == ["helpful-base/train.jsonl.gz"]
        assert read(tmp_path, "test", "helpful-base") == ["helpful-base/test.jsonl.gz"]
        with pytest.raises(DataError, match=r"configurations \['harmless-base', 'helpful-base'\]. Choose one"):
            read(tmp_path)
        with pytest.raises(DataError, match=r"no configuration 'red', only \['harmless-base', 'helpful-base'\]"):
            read(tmp_path, config="red")

    def test_a_single_one_need_not_be_named_and_files_beside_go_first(self, tmp_path):
        made(tmp_path, "main/train/0000.parquet", "main/test/0000.parquet")
        assert read(tmp_path) == ["main/train/0000.parquet"]
        made(tmp_path, "train.jsonl")
        assert read(tmp_path) == read(tmp_path, config="default") == ["train.jsonl"]
        assert read(tmp_path, config="main") == ["main/train/0000.parquet"]

    def test_saved_folders_may_be_configurations(self, tmp_path):
        datasets.DatasetDict(fit=datasets.Dataset.from_list([{"prompt": "x"}])).save_to_disk(tmp_path / "main")
        assert read(tmp_path, "fit", "main") == ["x"]
        with pytest.raises(DataError, match=r"no such split, only \['fit'\]"):
            read(tmp_path, config="main")
        with pytest.raises(DataError, match="has no dataset_config 'a'"):
            read(tmp_path / "main", "fit", "a")


README = """---
license: mit
configs:
- config_name: {first}
  data_files:
  - split: train
    path: data/prefs-*
  - split: odd_words
    path: [data/test-*, more/*.jsonl]
- config_name: raw
  data_dir: raw
---
# Data
"""


class TestReadme:
    def test_what_it_declares_holds(self, tmp_path):
        made(tmp_path, "data/prefs-0.jsonl", "data/prefs-1.jsonl", "data/test-0.jsonl", "more/a.jsonl", "raw/test.csv")
        (tmp_path / "README.md").write_text(README.format(first="default"))
        assert read(tmp_path) == ["data/prefs-0.jsonl", "data/prefs-1.jsonl"]
        assert read(tmp_path, "odd_words") == ["data/test-0.jsonl", "more/a.jsonl"]
        assert read(tmp_path, "test", "raw") == ["raw/test.csv"]
        with pytest.raises(DataError, match=r"no such split, only \['train', 'odd_words'\]"):
            read(tmp_path, "test")

    def test_without_a_default_one_is_to_be_chosen(self, tmp_path):
        made(tmp_path, "data/prefs-0.jsonl", "train.jsonl")
        (tmp_path / "README.md").write_text(README.format(first="prefs"))
        assert read(tmp_path, config="prefs") == ["data/prefs-0.jsonl"]
        with pytest.raises(DataError, match=r"names the configurations \['prefs', 'raw'\]. Choose one"):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("header", "said"),
        [
            ("configs:\n- config_name: default\n  data_files: gone/*.jsonl", "names files that are not there"),
            ("configs:\n- config_name: default\n  data_files: hf://datasets/a/b/x.jsonl", "lies elsewhere"),
            ("configs:\n- data_files: train.jsonl", "no readable configs"),
            ("configs: [", "no readable configs"),
            ("configs:\n- config_name: default\n  data_files: '*.md'", "cannot read all of ['NOTES.md']"),
        ],
    )
    def test_what_it_says_wrongly_is_named(self, tmp_path, header, said):
        made(tmp_path, "train.jsonl", "NOTES.md")
        (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
        with pytest.raises(DataError) as refusal:
            load_rows(str(tmp_path), split="train", config=None)
        assert said in str(refusal.value)

    def test_a_readme_without_configs_says_nothing_of_files(self, tmp_path):
        made(tmp_path, "train.jsonl")
        (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Data\n")
        assert read(tmp_path) == ["train.jsonl"]
