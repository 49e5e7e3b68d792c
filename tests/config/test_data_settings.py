"""Settings of data: several data sets, names of columns in every spelling, and what clashes."""

import pytest

from nearstep.cli.command import Command
from nearstep.common.errors import ConfigError
from nearstep.config.data import FORMATS
from nearstep.config.ppo import SECTIONS, PPOConfig

PPO = Command("ppo", "", PPOConfig, SECTIONS, lambda settings: None)


def read(*words):
    return PPO.read(words)


def test_one_name_or_several():
    assert PPOConfig(dataset_name="a").dataset_name == ("a",)
    assert read("--dataset_name", "a", "b", "--dataset_weights", "1", "3").dataset_weights == (1.0, 3.0)
    assert PPOConfig().dataset_train_split == ("train",)
    assert PPOConfig(dataset_name=["a", "b"], dataset_train_split=["x", "y"]).dataset_train_split == ("x", "y")


@pytest.mark.parametrize(
    "words",
    [
        ["--columns", "prompt=question", "reference=answer"],
        ["--columns=prompt=question", "reference=answer"],
        ["--columns", '{"prompt": "question", "reference": "answer"}'],
    ],
)
def test_columns_on_the_command_line(words):
    assert read(*words).columns == (("prompt", "question"), ("reference", "answer"))


@pytest.mark.parametrize(
    "text", ["columns:\n  prompt: question\n  reference: answer\n", "columns: [prompt=question, reference=answer]\n"]
)
def test_columns_in_a_file(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    assert read("--config", str(tmp_path / "run.yaml")).columns == (("prompt", "question"), ("reference", "answer"))


def test_other_settings_in_a_file_may_not_be_nested(tmp_path):
    (tmp_path / "run.yaml").write_text("dataset_name:\n  a: b\n")
    with pytest.raises(ConfigError, match="line 1: dataset_name is nested"):
        read("--config", str(tmp_path / "run.yaml"))


def test_columns_in_python():
    given = PPOConfig(columns={"prompt": "a=b"}).columns
    assert given == (("prompt", "a=b"),)
    assert PPOConfig(columns=given).columns == given
    assert PPOConfig(columns=None).columns == PPOConfig(columns="none").columns == ()


@pytest.mark.parametrize("columns", ["prompt", "=a", "prompt=", 3, [["a"]], {"prompt": 3}, "{prompt"])
def test_columns_that_are_no_names(columns):
    with pytest.raises(ConfigError, match=r"columns = .* must be names such as prompt=question"):
        PPOConfig(columns=columns)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dataset_name": ["a", "b"], "dataset_weights": [1.0]}, "dataset_weights has 1 entries for 2 data sets"),
        ({"dataset_name": ["a", "b"], "dataset_weights": [1.0, 0.0]}, "must be above 0"),
        (
            {"dataset_name": ["a", "b", "c"], "dataset_config": ["x", "y"]},
            "dataset_config has 2 entries for 3 data sets",
        ),
        ({"dataset_name": ["a"], "dataset_train_split": ["x", "y"]}, "dataset_train_split has 2 entries for 1 data"),
        ({"dataset_train_split": []}, "dataset_train_split is empty"),
        ({"dataset_format": "hh"}, "dataset_format = 'hh' is unknown; did you mean"),
        ({"dataset_format": "alpacca"}, "did you mean alpaca?"),
        ({"prompt_type": "chatlm"}, "prompt_type = 'chatlm' is unknown; did you mean chatml?"),
        ({"columns": ["a=b", "a=c"]}, "columns names a more than once"),
        ({"streaming": True}, "streaming needs total_episodes"),
        ({"streaming": True, "total_episodes": 8, "dataset_name": ["a", "b"]}, "streaming several data sets needs"),
        ({"on_bad_row": "ignore"}, "on_bad_row = 'ignore' must be one of raise, drop"),
        ({"num_eval_rows": 0}, "num_eval_rows = 0 must be at least 1"),
        ({"shuffle_buffer": 0}, "shuffle_buffer = 0 must be at least 1"),
    ],
)
def test_what_clashes(settings, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        PPOConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shuffle_buffer": 5}, "shuffle_buffer has no effect without streaming"),
        (
            {"shuffle_buffer": 5, "streaming": True, "total_episodes": 8, "shuffle_dataset": False},
            "shuffle_buffer has no effect without shuffle_dataset",
        ),
        ({"dataset_name": "a", "dataset_weights": 1.0}, "dataset_weights has no effect with one data set"),
    ],
)
def test_what_has_no_effect(settings, said):
    with pytest.warns(UserWarning, match=said):
        PPOConfig(**settings)


@pytest.mark.parametrize(("old", "new"), [("dataset_streaming", "streaming"), ("interleave_probs", "dataset_weights")])
def test_names_of_other_libraries(old, new):
    value = {"streaming": True, "dataset_weights": (1.0, 2.0)}[new]
    with pytest.warns(UserWarning, match=f"{old} is called {new} here"):
        assert vars(PPOConfig(**{old: value, "total_episodes": 8}))[new] == value


def test_every_format_is_named_in_the_help():
    field = next(field for field in PPOConfig.__dataclass_fields__.values() if field.name == "dataset_format")
    assert all(name in field.metadata["option"].help for name in FORMATS)
