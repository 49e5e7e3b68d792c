"""Settings of reward-model training: names of TRL and AlignTune, what is refused, what is told to have no effect."""

import dataclasses

import pytest

from nearstep import ConfigError, RewardConfig
from nearstep.config.reward_model import SECTIONS


def test_trl_names_and_defaults():
    config = RewardConfig()
    for name, value in {
        "learning_rate": 1e-4, "logging_steps": 10, "center_rewards_coefficient": None,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear",
    }.items():  # fmt: skip
        assert vars(config)[name] == value


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"base_model_name": "a"}, "model_name_or_path", "a"),
        ({"reward_functions": ("length_target",)}, "reward_funcs", ("length_target",)),
        ({"composite_weights": (1.0,), "reward_functions": ("f.py:f",)}, "reward_weights", (1.0,)),
        ({"max_seq_length": 7}, "max_length", 7),
        ({"label_smoothing_factor": 0.1}, "label_smoothing", 0.1),
        ({"dataset": "a.jsonl"}, "dataset_name", ("a.jsonl",)),
        ({"lr": 1e-5}, "learning_rate", 1e-5),
    ],
)
def test_names_of_others(given, name, value):
    with pytest.warns(UserWarning, match=f"is called {name} here"):
        assert vars(RewardConfig(**given))[name] == value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"disable_dropout": False}, "disable_dropout = False: dropout is off"),
        ({"chat_template_path": "a"}, "set the tokenizer's own chat_template"),
        ({"kl_coef": 0.1}, "unknown setting kl_coef"),
        ({"total_episodes": 5}, "unknown setting total_episodes"),
        ({"label_smoothing": 0.5}, "at least 0 and below 0.5"),
        ({"held_out_share": 1.0}, "at least 0 and below 1"),
        ({"normalize": "zscore"}, "one of none, mean, mean_and_std, level"),
        (
            {"normalize": "level", "objective": "pairwise"},
            "normalize = level keeps the level of scores, and pairs have none",
        ),
        ({"reward_funcs": ("a.py:f", "a.py:g"), "reward_weights": (1.0,)}, r"1 weight\(s\) for 2 rewards"),
        ({"load_best_model_at_end": True, "eval_steps": 5, "save_steps": 10}, "the same number as save_steps"),
        ({"bf16": True, "dtype": "float64"}, "give one"),
        ({"dataset_train_split": ()}, "dataset_train_split is empty"),
    ],
)
def test_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        RewardConfig(**given)


def test_all_problems_at_once():
    with pytest.raises(ConfigError, match="3 problems"):
        RewardConfig(max_length=0, sead=1, objective="dpo")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lora_r": 4}, "lora_r has no effect without use_peft"),
        ({"max_steps": 5, "num_train_epochs": 2.0}, "num_train_epochs has no effect beside max_steps"),
        ({"objective": "regression", "min_score_gap": 1.0}, "min_score_gap has no effect with objective = regression"),
        ({"dataset_test_split": "test", "held_out_share": 0.2}, "held_out_share has no effect beside evaluation data"),
        ({"save_total_limit": 1}, "save_total_limit has no effect without save_steps"),
        ({"reward_url_retries": 1}, "reward_url_retries has no effect without reward_url"),
    ],
)
def test_without_effect(given, words):
    with pytest.warns(UserWarning, match=words):
        RewardConfig(**given)


def test_sections_name_settings():
    assert {first for _, first in SECTIONS} <= {field.name for field in dataclasses.fields(RewardConfig)}
