"""`nearstep prepare` as it is typed: seed E's spelling, what is missing, and how many workers there are."""

import dataclasses
import json

import datasets
import pytest

from nearstep.cli import prepare
from nearstep.cli.commands import COMMANDS
from nearstep.cli.main import main
from nearstep.cli.prepare import PrepareOptions
from nearstep.config.old_names import OF_PREPARE
from nearstep.data.preparing import run
from tests.tiny import byte_tokenizer

[COMMAND] = [command for command in COMMANDS if command.name == "prepare"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A parquet file in Alpaca's format, with a row that cannot be used, and a tokenizer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare.signal, "signal", lambda number, handler: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")  # so that it is as before afterwards
    rows = [{"instruction": f"add {number}", "input": "", "output": "x"} for number in range(9)]
    datasets.Dataset.from_list([*rows, {"instruction": "", "input": "", "output": ""}]).to_parquet(
        tmp_path / "a.parquet"
    )
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


SEED_E = (
    "--input", "a.parquet", "--tokenizer-name-or-path", "tokenizer", "--output-prefix", "out/alpaca", "--workers", "16",
    "--log-interval", "1000", "--tokenizer-type", "PretrainedFromHF", "--handler-name",
    "PPOAlpacaStyleInstructionHandler", "--prompt-type", "empty",
)  # fmt: skip


def test_seed_es_command_runs_as_it_stands(folder, monkeypatch, capsys):
    monkeypatch.setattr(run, "usable_cores", lambda: 1)
    assert main(["prepare", *SEED_E, "--on_bad_row", "drop"]) == 0
    said = capsys.readouterr().err
    assert "16 workers asked for, 1 used: this process may use 1 core(s)" in said
    assert "handler-name PPOAlpacaStyleInstructionHandler is called alpaca here" in said
    assert "prompt-type empty is called raw here" in said
    assert "9 of 10 rows prepared" in said
    assert "left out: 1 empty" in said
    manifest = json.loads((folder / "out" / "alpaca" / "manifest.json").read_text())
    assert (manifest["dataset_format"], manifest["prompt_type"], manifest["rows_written"]) == ("alpaca", "raw", 9)


def test_bad_rows_end_it_with_code_1(folder, monkeypatch, capsys):
    monkeypatch.setattr(run, "usable_cores", lambda: 1)
    assert main(["prepare", *SEED_E]) == 1
    assert "1 row of data set 'a.parquet', split 'train', cannot be used:\n  row index 9, column 'instruction'" in (
        capsys.readouterr().err
    )
    assert not (folder / "out" / "alpaca").exists()


def test_map_keys_are_mindspeeds_words(folder):
    options = COMMAND.read([
        "--input", "a.parquet", "--output", "out", "--tokenizer", "tokenizer", "--map-keys",
        '{"prompt": "question", "query": "more", "response": "answer", "system": "system"}',
    ])  # fmt: skip
    assert options.names == {"instruction": "question", "input": "more", "output": "answer", "system": "system"}


def test_files_that_are_not_there_are_told_at_once(capsys):
    given = ["--input", "data/none.jsonl", "--tokenizer", "./none", "--output", "out"]
    assert main(["prepare", *given]) == 2
    said = capsys.readouterr().err
    assert "input = data/none.jsonl: no such file or folder" in said
    assert "tokenizer = ./none: no such file or folder" in said
    assert "hub" not in said


def test_what_is_missing_is_told_at_once(capsys):
    assert main(["prepare"]) == 2
    said = capsys.readouterr().err
    assert all(f"{name} is missing" in said for name in ("input", "output", "tokenizer"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--handler-name", "HHHandler"], "dataset_format = 'HHHandler' is unknown"),
        (["--prompt-type", "qwen"], "prompt_type = 'qwen' is unknown"),
        (["--pack"], "pack = True: prompts are not packed"),
        (["--workers", "0"], "workers = '0' must be at least 1"),
        (["--columns", "a=b", "--map-keys", "c=d"], "columns and map_keys say the same in different words"),
    ],
)
def test_what_is_refused(folder, words, said, capsys):
    given = [*SEED_E[:6], *words]
    assert main(["prepare", *given]) == 2
    assert said in capsys.readouterr().err


def test_what_has_no_effect():
    with pytest.warns(UserWarning, match="seed has no effect without max_samples"):
        PrepareOptions(seed=1)
    with pytest.warns(UserWarning, match="on_long_prompt has no effect without max_length"):
        PrepareOptions(on_long_prompt="error")


def test_every_old_name_leads_to_a_setting_and_hides_none():
    names = {field.name for field in dataclasses.fields(PrepareOptions)}
    assert set(OF_PREPARE.renamed.values()) | set(OF_PREPARE.values) <= names
    assert not names & (set(OF_PREPARE.renamed) | set(OF_PREPARE.retired))


def test_every_setting_reaches_the_work(folder, monkeypatch):
    asked = []
    monkeypatch.setattr("nearstep.data.preparing.run.prepare", lambda options, tell: asked.append(options))
    words = {
        "input": "a.parquet", "output": "out", "tokenizer": "tokenizer", "split": "test", "dataset_config": "main",
        "trust_remote_code": "true", "dataset_format": "query", "columns": "prompt=q", "prompt_type": "chat",
        "max_length": "5", "on_long_prompt": "error", "on_bad_row": "drop", "max_samples": "7", "seed": "3",
        "workers": "4", "log_interval": "9", "chat_template_kwargs": '{"thinking": false}',
    }  # fmt: skip
    assert set(words) | {"map_keys"} == {field.name for field in dataclasses.fields(PrepareOptions)}
    prepare.run_prepare(COMMAND.read([word for name, value in words.items() for word in (f"--{name}", value)]))
    [options] = asked
    assert {name: vars(options)[name] for name in words} == {
        **words, "trust_remote_code": ("true",), "columns": (("prompt", "q"),), "max_length": 5, "max_samples": 7,
        "seed": 3, "workers": 4, "log_interval": 9, "chat_template_kwargs": {"thinking": False},
    }  # fmt: skip
    assert options.names == {"prompt": "q"}
