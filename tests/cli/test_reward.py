"""`nearstep reward` as it is typed: what it runs, what it refuses before any weight is loaded, in one message."""

import json

import pytest

from nearstep.cli.main import main
from tests.reward_modeling.world import base_folder, pairs, write


@pytest.fixture
def places(tmp_path):
    return base_folder(tmp_path / "base"), write(tmp_path / "pairs.jsonl", pairs(20)), tmp_path / "out"


def command(places, *more):
    base, data, output = places
    words = ["--model_name_or_path", base, "--dataset_name", data, "--output_dir", output, "--use_cpu", *more]
    return main(["reward", *map(str, words)])


def test_it_trains_and_says_where_the_model_is(places, capsys):
    assert command(places, "--max_steps", 2, "--label_smoothing_factor", 0.1) == 0
    said = capsys.readouterr()
    assert f"The reward model is in {places[2] / 'reward'}" in said.out
    assert "label_smoothing_factor is called label_smoothing here" in said.err
    assert json.loads((places[2] / "report.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_columns_under_other_names(places, tmp_path, capsys):
    rows = [{"question": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in pairs(20)]
    renamed = (places[0], write(tmp_path / "renamed.jsonl", rows), places[2])
    names = ("prompt=question", "chosen=good", "rejected=bad")
    assert command(renamed, "--max_steps", 1, "--columns", *names) == 0


@pytest.mark.slow
def test_seed_c_by_its_names(places, tmp_path, capsys):
    base, _, output = places
    words = ["--base_model_name", base, "--reward_functions", "length_target", "diversity", "--composite_weights"]
    more = ["0.7", "0.3", "--output_dir", output, "--num_texts", 40, "--response_length", 16, "--use_cpu"]
    assert main(["reward", *map(str, [*words, *more])]) == 0
    assert "the model wrote 40 texts from nothing" in capsys.readouterr().out


def refused(words, capsys, code=2):
    assert main(["reward", *map(str, words)]) == code
    return capsys.readouterr().err


def test_everything_that_is_missing_is_told_at_once(capsys):
    said = refused(["--objective", "regression", "--learning_rate", "-1", "--sead", "3"], capsys)
    for words in (
        "5 problems", "model_name_or_path is missing", "dataset_name is missing", "no source gives any",
        "learning_rate = '-1' must be at least 0", "unknown setting sead; did you mean seed?",
    ):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--dataset_name", "./nowhere.jsonl"], "dataset_name = ./nowhere.jsonl: no such file or folder"),
        (["--reward_model_path", "./nowhere"], "reward_model_path = ./nowhere: no such file or folder"),
        (["--reward_funcs", "nowhere.py:f"], "no such file or folder nowhere.py"),
        (["--resume_from_checkpoint", "./nowhere"], "resume_from_checkpoint = ./nowhere: no such file"),
        (["--eval_steps", "2", "--held_out_share", "0"], "eval_steps needs"),
        (["--load_best_model_at_end"], "give eval_steps, and the same number as save_steps"),
        (["--dtype", "float64", "--bf16"], "bf16 computes in bfloat16"),
        (["--dataset_format", "hh"], "dataset_format = 'hh' is unknown"),
        (["--reward_weights", "1"], "reward_weights has no rewards to weigh"),
        (["--label_smoothing", "0.5"], "must be at least 0 and below 0.5"),
    ],
)
def test_wrong_settings(places, more, words, capsys):
    base, data, output = places
    given = ["--model_name_or_path", base, "--output_dir", output, "--use_cpu"]
    given += [] if "--dataset_name" in more else ["--dataset_name", data]
    assert words in refused([*given, *more], capsys)
    assert not output.exists()


def test_bad_rows_end_it_with_the_row(places, tmp_path, capsys):
    bad = write(tmp_path / "bad.jsonl", [*pairs(2), {"prompt": "a", "chosen": "b", "rejected": "b"}])
    assert command((places[0], bad, places[2])) == 1
    said = capsys.readouterr().err
    assert "bad.jsonl" in said
    assert "line 3, column 'chosen'" in said
    assert not places[2].exists()


@pytest.mark.slow
def test_settings_without_effect_are_told(places, tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "def h(completions, **columns):\n    return [t.count('h') for t in completions]\n"
    )
    scored = ("--objective", "regression", "--reward_funcs", f"{tmp_path}/mine.py:h", "--max_steps", 1)
    assert command(places, *scored, "--label_smoothing", 0.1) == 0
    assert "label_smoothing has no effect with objective = regression" in capsys.readouterr().err
