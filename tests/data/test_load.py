"""Files, folders, hub names and objects become the same tables."""

import json

import datasets
import pytest
import torch

from nearstep.common.errors import DataError
from nearstep.data.load import load_rows, table_of
from nearstep.data.stream import open_stream

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b, c\u2028d", "n": 2}]


def load(path, split="train", config=None):
    return load_rows(str(path), split=split, config=config)


def places(table):
    return [table.position(row) for row in range(len(table))]


def write_jsonl(path, rows, end="\n", start=""):
    path.write_bytes((start + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows)).encode())
    return path


class TestFiles:
    @pytest.mark.parametrize(("end", "start"), [("\n", ""), ("\r\n", ""), ("\n\n", ""), ("\n", "\ufeff")])
    def test_jsonl_with_any_line_ends_and_a_byte_order_mark(self, tmp_path, end, start):
        table = load(write_jsonl(tmp_path / "a.jsonl", ROWS, end, start))
        assert list(table.rows) == ROWS
        assert table.columns == ("prompt", "n")
        assert places(table) == (["line 1", "line 2"] if end != "\n\n" else ["line 1", "line 3"])

    def test_columns_of_jsonl_are_those_of_any_row(self, tmp_path):
        table = load(write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b", "late": 1}]))
        assert table.columns == ("prompt", "late")

    @pytest.mark.parametrize("kind", ["jsonl", "json"])
    def test_values_stay_what_they_are_in_the_file(self, tmp_path, kind):
        """Readers that look for one type per column change each of these."""
        rows = [
            {"prompt": "2024-01-02", "n": 1, "big": 2**70, "meta": {}, "messages": [{"role": "user", "content": "a"}]},
            {"n": 1.5, "prompt": "b", "meta": {"k": [1, "x", None]}, "pair": "\ud800", "messages":
             [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "name": "x"}]},
            {"prompt": [1], "n": None},
        ]  # fmt: skip
        path = tmp_path / f"a.{kind}"
        path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
        table = load(path)
        assert list(map(json.dumps, table.rows)) == list(map(json.dumps, rows))
        assert json.dumps(table.rows[1]) == json.dumps(rows[1])
        assert table.columns == ("prompt", "n", "big", "meta", "messages", "pair")

    @pytest.mark.parametrize("content", [ROWS, {"data": ROWS, "version": 1}])
    def test_json_is_a_list_or_has_it_under_data(self, tmp_path, content):
        (tmp_path / "a.json").write_text(json.dumps(content))
        table = load(tmp_path / "a.json")
        assert list(table.rows) == ROWS
        assert places(table) == ["row index 0", "row index 1"]

    def test_csv_names_the_line_on_which_a_record_starts(self, tmp_path):
        (tmp_path / "a.csv").write_bytes('\ufeffprompt,n\r\n"two\nlines, here",1\r\n\r\nlast,2\r\n'.encode())
        table = load(tmp_path / "a.csv")
        assert list(table.rows) == [{"prompt": "two\nlines, here", "n": "1"}, {"prompt": "last", "n": "2"}]
        assert places(table) == ["line 2", "line 5"]

    def test_parquet_keeps_types_and_mixed_prompts(self, tmp_path):
        mixed = write_jsonl(tmp_path / "mixed.jsonl", [{"prompt": "x"}, {"prompt": [{"role": "user", "content": "y"}]}])
        dataset = datasets.load_dataset("json", data_files=str(mixed), split="train", cache_dir=str(tmp_path / "cache"))
        dataset.to_parquet(tmp_path / "a.parquet")
        table = load(tmp_path / "a.parquet")
        assert [row["prompt"] for row in table.rows] == ["x", [{"role": "user", "content": "y"}]]
        assert table.columns == ("prompt",)

    def test_suffix_in_capitals(self, tmp_path):
        assert len(load(write_jsonl(tmp_path / "A.JSONL", ROWS))) == 2

    def test_a_file_has_no_other_split_than_train(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", ROWS)
        with pytest.raises(DataError, match=r"split 'test': a single file has only the split 'train'"):
            load(path, split="test")

    def test_configuration_of_a_file_is_refused(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", ROWS)
        with pytest.raises(DataError, match="dataset_config = 'main'"):
            load(path, config="main")

    def test_home_folder(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        write_jsonl(tmp_path / "a.jsonl", ROWS)
        assert len(load("~/a.jsonl")) == 2


class TestFolders:
    def test_files_of_one_kind_in_order_of_their_names(self, tmp_path):
        write_jsonl(tmp_path / "a-1.jsonl", [{"prompt": "second"}])
        write_jsonl(tmp_path / "a-0.jsonl", [{"prompt": "first"}])
        (tmp_path / "README.md").write_text("not data")
        table = load(tmp_path)
        assert [row["prompt"] for row in table.rows] == ["first", "second"]
        assert places(table) == ["file 'a-0.jsonl', line 1", "file 'a-1.jsonl', line 1"]

    def test_names_of_files_tell_the_split(self, tmp_path):
        for name in ("train-00000-of-00002", "train-00001-of-00002", "test"):
            write_jsonl(tmp_path / f"{name}.jsonl", [{"prompt": name}])
        assert [row["prompt"] for row in load(tmp_path).rows] == ["train-00000-of-00002", "train-00001-of-00002"]
        assert [row["prompt"] for row in load(tmp_path, split="test").rows] == ["test"]
        with pytest.raises(DataError, match=r"split 'dev': there is no such split, only \['test', 'train'\]"):
            load(tmp_path, split="dev")

    def test_parquet_files_lacking_a_column_are_joined_and_types_never_converted(self, tmp_path):
        datasets.Dataset.from_list([{"prompt": "x"}]).to_parquet(tmp_path / "0.parquet")
        datasets.Dataset.from_list([{"prompt": "y", "n": 1}]).to_parquet(tmp_path / "1.parquet")
        assert list(load(tmp_path).rows) == [{"prompt": "x", "n": None}, {"prompt": "y", "n": 1}]
        datasets.Dataset.from_list([{"prompt": 3}]).to_parquet(tmp_path / "2.parquet")
        with pytest.raises(DataError, match="disagree on the type of a column"):
            load(tmp_path)

    def test_mixed_kinds_are_refused(self, tmp_path):
        write_jsonl(tmp_path / "train.jsonl", ROWS)
        (tmp_path / "train.csv").write_text("prompt\nx\n")
        with pytest.raises(DataError, match=r"mixes kinds of files \('train.csv', 'train.jsonl'\)"):
            load(tmp_path)

    def test_folder_without_data(self, tmp_path):
        with pytest.raises(DataError, match=r"the folder holds no file that ends in \.jsonl, \.json, \.csv, \.parquet"):
            load(tmp_path)

    def test_saved_data_set(self, tmp_path):
        datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
        assert list(load(tmp_path / "saved").rows) == ROWS
        with pytest.raises(DataError, match=r"no such split, only \['train'\]"):
            load(tmp_path / "saved", split="test")

    def test_saved_splits(self, tmp_path):
        splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
        datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
        assert len(load(tmp_path / "saved")) == 2
        assert len(load(tmp_path / "saved", split="test")) == 1
        (tmp_path / "saved" / "train" / "state.json").unlink()
        with pytest.raises(DataError, match=r"no folder of datasets.save_to_disk.*state.json"):
            load(tmp_path / "saved")


class TestPartsOfSplits:
    @pytest.mark.parametrize(
        ("part", "rows"),
        [("[:3]", range(3)), ("[3:]", range(3, 10)), ("[2:5]", range(2, 5)), ("[:90%]", range(9)), ("[90%:]", [9]),
         ("[-2:]", [8, 9]), ("[:25%]", [0, 1]), ("[:]", range(10)), ("[8:99]", [8, 9])],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
    def test_rows_and_their_places(self, tmp_path, part, rows, kind):
        numbered = [{"prompt": "a", "n": number} for number in range(10)]
        path = tmp_path / f"a.{kind}"
        if kind == "jsonl":
            write_jsonl(path, numbered)
        elif kind == "parquet":
            datasets.Dataset.from_list(numbered).to_parquet(path)
        else:
            datasets.Dataset.from_list(numbered).save_to_disk(path)
        table = load(path, split=f"train{part}")
        assert [row["n"] for row in table.rows] == [table.rows[n]["n"] for n in range(len(table))] == list(rows)
        assert places(table) == [f"line {n + 1}" if kind == "jsonl" else f"row index {n}" for n in rows]
        assert f"split 'train{part}'" in table.label

    def test_streams(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "n": number} for number in range(10)])
        rows = open_stream(str(path), split="train[2:4]", config=None)
        assert [(place, row["n"]) for place, row in rows.entries()] == [("line 3", 2), ("line 4", 3)]
        with pytest.raises(DataError, match="nobody knows where 50% of a stream is"):
            list(open_stream(str(path), split="train[:50%]", config=None).entries())

    @pytest.mark.parametrize(
        ("part", "said"),
        [
            ("[5:200%]", "both ends as numbers of rows, or both as percentages"),
            ("[10%:5]", "both ends as numbers of rows, or both as percentages"),
            ("[:200%]", "nothing beyond 100 %"),
            ("[-101%:]", "nothing beyond 100 %"),
        ],
    )
    def test_ends_that_mean_nothing_are_refused(self, tmp_path, part, said):
        path = write_jsonl(tmp_path / "a.jsonl", ROWS)
        with pytest.raises(DataError, match=said):
            load(path, split=f"train{part}")
        with pytest.raises(DataError, match=said):
            open_stream(str(path), split=f"train{part}", config=None)

    def test_nothing_left(self, tmp_path):
        path = write_jsonl(tmp_path / "a.jsonl", ROWS)
        with pytest.raises(DataError, match=r"split 'train\[5:\]': the split has 2 rows, and none of them"):
            load(path, split="train[5:]")


class TestNamesThatAreNotThere:
    @pytest.mark.parametrize(
        "name",
        [
            "prompts.jsonl",
            "./prompts",
            "../prompts",
            "/no/prompts",
            "a/b/c",
            "~/prompts",
            "a b",
            "x.tsv",
            "",
            "x/" * 3000,
        ],
    )
    def test_paths_never_reach_the_hub(self, name, monkeypatch):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
        with pytest.raises(DataError, match="there is no such file or folder") as error:
            load(name)
        assert repr(name)[:200] in str(error.value)
        assert "split 'train'" in str(error.value)

    def test_hub_out_of_reach(self):
        with pytest.raises(DataError, match=r"'trl-lib/tldr', split 'train'.*the hub cannot be reached") as error:
            load("trl-lib/tldr")
        assert isinstance(error.value.__cause__, ConnectionError)

    def test_hub_gets_name_configuration_and_split(self, monkeypatch):
        asked = []

        def load_dataset(*args, **options):
            asked.append((args, options))
            return datasets.Dataset.from_list(ROWS)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        table = load("owner/data-v1.5", split="train[:2]", config="main")
        assert asked == [(("owner/data-v1.5", "main"), {"split": "train[:2]", "streaming": False})]
        assert (table.name, table.split, len(table)) == ("owner/data-v1.5", "train[:2]", 2)

    @pytest.mark.parametrize("error", [ValueError("Unknown split"), FileNotFoundError("gone"), RuntimeError("scripts")])
    def test_what_the_hub_says_is_passed_on(self, error, monkeypatch):
        def load_dataset(*_, **__):
            raise error

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        with pytest.raises(DataError, match=f"'owner/data', split 'dev', configuration 'main'.*{error}"):
            load("owner/data", split="dev", config="main")


class TestObjects:
    def test_sequences_of_mappings(self):
        assert list(table_of(ROWS, "mine", "train").rows) == ROWS
        assert len(table_of(tuple(ROWS), "mine", "train")) == 2

    def test_data_sets_are_read_where_they_are(self):
        dataset = datasets.Dataset.from_list(ROWS)
        table = table_of(dataset, "mine", "train")
        assert table.rows is dataset
        assert table.columns == ("prompt", "n")
        assert places(table) == ["row index 0", "row index 1"]

    @pytest.mark.parametrize(
        ("dataset", "said"),
        [
            (datasets.Dataset.from_list(ROWS).to_iterable_dataset(), "without streaming=True"),
            (datasets.DatasetDict(fit=datasets.Dataset.from_list(ROWS)), r"holds the splits \['fit'\]"),
            ({"prompt": ["a", "b"]}, r"one mapping \(\['prompt'\]\).*from_dict"),
            ("trl-lib/tldr", "it is the text 'trl-lib/tldr'"),
            (iter(ROWS), "a builtins.list_iterator cannot be read by row number"),
            ((row for row in ROWS), "a builtins.generator cannot"),
            (None, "a builtins.NoneType cannot"),
            (torch.utils.data.TensorDataset(torch.zeros(2)), "TensorDataset cannot"),
            (["a", "b"], r"row index 0: expected a mapping.*got 'a'"),
            ([{"prompt": "a"}, {3: "b"}], r"row index 1: expected a mapping.*got \{3: 'b'\}"),
            ([], "has no rows"),
            (datasets.Dataset.from_list([]), "has no rows"),
        ],
    )
    def test_anything_else_is_refused_with_a_remedy(self, dataset, said):
        with pytest.raises(DataError, match=rf"data set 'mine', split 'train'.*{said}"):
            table_of(dataset, "mine", "train")
