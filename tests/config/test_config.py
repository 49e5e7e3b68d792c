"""What a valid configuration holds, what it remarks, and that it stays as it was made."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import numpy
import pytest

from nearstep.common.errors import ConfigError
from nearstep.config.ppo import SECTIONS, PPOConfig


def test_defaults_raise_no_remark():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig()


def test_defaults_of_trl_hold():
    config = PPOConfig()
    assert (config.learning_rate, config.num_ppo_epochs, config.num_mini_batches) == (3e-6, 4, 1)
    assert (config.kl_coef, config.cliprange, config.cliprange_value, config.vf_coef) == (0.05, 0.2, 0.2, 0.1)
    assert (config.gamma, config.lam, config.temperature, config.response_length) == (1.0, 0.95, 0.7, 53)
    assert (config.total_episodes, config.missing_eos_penalty, config.kl_estimator) == (None, None, "k1")


@pytest.mark.parametrize(
    ("name", "given", "kept"),
    [
        ("learning_rate", 1, 1.0),
        ("learning_rate", numpy.float32(0.5), 0.5),
        ("learning_rate", Fraction(1, 2), 0.5),
        ("total_episodes", numpy.int64(7), 7),
        ("output_dir", Path("a") / "b", "a/b"),
        ("reward_funcs", "a.py:f", ("a.py:f",)),
        ("reward_funcs", ["a.py:f", "b.py:g"], ("a.py:f", "b.py:g")),
        ("reward_weights", 2, (2.0,)),
        ("reward_weights", (1, 0.5), (1.0, 0.5)),
        ("report_to", None, ()),
        ("report_to", "none", ()),
        ("stop_token_id", 0, (0,)),
        ("stop_token_id", [2, 7], (2, 7)),
        ("max_grad_norm", "none", None),
        ("max_grad_norm", None, None),
        ("stop_token", "None", None),
        ("chat_template_kwargs", '{"enable_thinking": false, "depth": 3}', {"enable_thinking": False, "depth": 3}),
        ("chat_template_kwargs", {"documents": [{"text": "a"}]}, {"documents": [{"text": "a"}]}),
        ("chat_template_kwargs", "none", None),
        ("stop_token", "\n\n###", "\n\n###"),
    ],
)
@pytest.mark.filterwarnings("ignore:without a stop token")
def test_values_take_the_type_of_their_field(name, given, kept):
    value = vars(PPOConfig(**{name: given}))[name]
    assert value == kept
    assert type(value) is type(kept)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PPOConfig().gamma = 0.5  # type: ignore[misc]


def test_replace_checks_again():
    config = PPOConfig(batch_size=8)
    assert dataclasses.replace(config, gamma=0.5) == PPOConfig(batch_size=8, gamma=0.5)
    with pytest.raises(ConfigError, match="num_mini_batches = 9 is more than batch_size = 8"):
        dataclasses.replace(config, num_mini_batches=9)


def test_copies_are_equal():
    config = PPOConfig(gamma=0.5, reward_funcs="a.py:f")
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert hash(config) == hash(copy.copy(config))


def test_editors_see_the_real_signature():
    parameters = inspect.signature(PPOConfig).parameters
    assert list(parameters) == [field.name for field in dataclasses.fields(PPOConfig)]
    assert parameters["gamma"].default == 1.0


def test_every_section_begins_at_a_setting_and_none_is_left_before_the_first():
    names = [field.name for field in dataclasses.fields(PPOConfig)]
    starts = [names.index(first) for _, first in SECTIONS]
    assert starts[0] == 0
    assert starts == sorted(starts)


WITHOUT_EFFECT = {
    "decode_graphs has no effect with response_length = 1": {"decode_graphs": True, "response_length": 1},
    "lora_r has no effect without use_peft": {"lora_r": 8},
    "refill_rounds has no effect with gate_fill = none": {"refill_rounds": 3},
    "penalty_reward_value has no effect without non_eos_penalty": {"penalty_reward_value": -2.0},
    "num_train_epochs has no effect beside total_episodes": {"num_train_epochs": 1, "total_episodes": 8},
    "gradient_accumulation_steps has no effect beside batch_size": {"gradient_accumulation_steps": 2, "batch_size": 8},
    "warmup_steps has no effect with a constant learning rate": {"warmup_steps": 5, "lr_scheduler_type": "constant"},
    "adam_epsilon has no effect with optim = sgd": {"adam_epsilon": 1e-5, "optim": "sgd"},
    "kl_horizon has no effect without kl_target": {"kl_horizon": 5},
    "kl_in has no effect with kl_coef = 0": {"kl_in": "loss", "kl_coef": 0.0},
    "overlong_penalty has no effect without overlong_buffer": {"overlong_penalty": 2.0},
    "early_stop_kl has no effect with one epoch": {"early_stop_kl": 0.1, "num_ppo_epochs": 1},
    "vf_warmup_lam has no effect without vf_warmup_updates and vf_pretrain_rollouts": {"vf_warmup_lam": 0.9},
    "correction_low has no effect with anchor = sampled": {"correction_low": 0.5},
    "correction has no effect with anchor = sampled": {"correction": "tis"},
    "correction_action has no effect without correction_high and correction_low": {
        "correction_action": "mask",
        "anchor": "recomputed",
    },
    "correction_level has no effect with correction = tis": {
        "correction": "tis",
        "correction_level": "row",
        "anchor": "recomputed",
    },
    "correction_high has no effect with correction = none": {
        "correction": "none",
        "correction_high": 2.0,
        "anchor": "recomputed",
    },
    "anchor = interpolated is that of sampled with engine = transformers": {"anchor": "interpolated"},
    "reward_retries has no effect with on_reward_error = drop": {"reward_retries": 5, "on_reward_error": "drop"},
    "reward_url_retries has no effect without reward_url": {"reward_url_retries": 1},
    "reward_url_token_env has no effect without reward_url": {"reward_url_token_env": "TOKEN"},
    "the token of reward_url goes to h unencrypted": {"reward_url": "http://h/s", "reward_url_token_env": "TOKEN"},
    "save_total_limit has no effect without save_steps": {"save_total_limit": 2},
    "hub_model_id has no effect without push_to_hub": {"hub_model_id": "me/policy"},
    "without a stop token all response_length tokens": {"stop_token": None},  # D28
}


@pytest.mark.parametrize(("remark", "given"), WITHOUT_EFFECT.items())
def test_a_setting_without_effect_is_remarked(remark, given):
    with pytest.warns(UserWarning, match=remark) as notes:
        PPOConfig(**given)
    assert len(notes) == 1


def test_what_switches_a_setting_on_silences_the_remark():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig(use_peft=True, lora_r=8, non_eos_penalty=True, penalty_reward_value=-2.0, save_steps=5,
                  save_total_limit=2, push_to_hub=True, hub_model_id="me/policy", lr_scheduler_type="linear",
                  warmup_steps=5)  # fmt: skip


def test_a_warning_points_at_the_line_that_made_the_configuration(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from nearstep.config.ppo import PPOConfig\n\nPPOConfig(lr=1e-6)\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert f"{script}:3: UserWarning: lr is called learning_rate here" in run.stderr
