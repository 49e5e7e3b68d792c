"""How words become settings: every spelling that users bring along."""

import pytest

from nearstep.cli.flags import read_flags
from nearstep.common.errors import ConfigError
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import from_mapping


def read(line: str) -> PPOConfig:
    flags = read_flags(PPOConfig, line.split())
    return from_mapping(PPOConfig, flags.values, texts=True, found=flags.problems)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--learning_rate 1e-6", "learning_rate", 1e-6),
        ("--learning-rate 1e-6", "learning_rate", 1e-6),
        ("--learning_rate=1e-6", "learning_rate", 1e-6),
        ("--penalty-reward-value -2 --non-eos-penalty", "penalty_reward_value", -2.0),
        ("--total_episodes 1e6", "total_episodes", 1_000_000),
        ("--total_episodes 10000", "total_episodes", 10_000),
        ("--use_peft", "use_peft", True),
        ("--use-peft true", "use_peft", True),
        ("--use_peft=Yes", "use_peft", True),
        ("--use_peft --seed 3", "use_peft", True),
        ("--log_rollouts=false", "log_rollouts", False),
        ("--log-rollouts no", "log_rollouts", False),
        ("--no-log-rollouts", "log_rollouts", False),
        ("--no_log_rollouts --seed 3", "log_rollouts", False),
        ("--no-use-lora", "use_peft", False),
        ("--reward_funcs a.py:f b.py:g --seed 3", "reward_funcs", ("a.py:f", "b.py:g")),
        ("--reward_funcs=a.py:f", "reward_funcs", ("a.py:f",)),
        ("--reward_weights -1 0.5 --reward_funcs a.py:f b.py:g", "reward_weights", (-1.0, 0.5)),
        ("--report_to none", "report_to", ()),
        ("--report_to", "report_to", ()),
        ("--max_grad_norm none", "max_grad_norm", None),
        ("--run_name=a=b", "run_name", "a=b"),
        ("--run_name=--odd", "run_name", "--odd"),
        ("--seed 1 --seed 2", "seed", 2),
    ],
)
@pytest.mark.filterwarnings("ignore:use-lora is called", "ignore:use_lora is called")
def test_spelling(line, name, value):
    assert vars(read(line))[name] == value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run.yaml --seed 3", "run.yaml belongs to no setting; write --name value"),
        ("--seed", "--seed needs a value"),
        ("--lr --seed 3", "--lr needs a value"),
        ("--seed 3 4", "unexpected word 4: --seed takes one value, here 3"),
        ("--output_dir out extra_word", "unexpected word extra_word: --output_dir takes one value, here out"),
        ("--eval_steps 4 and 5", "unexpected word and 5"),
        ("--reward_funcs length,rouge", "must be separate entries: separate them by spaces"),
        ("--reward_weights 0.5,0.5", "must be separate entries"),
        ("--report_to wandb,tensorboard", "must be separate entries"),
        ("--seed 3.5", "seed = '3.5' must be a whole number"),
        ("--use_peft maybe", "use_peft = 'maybe' must be true or false"),
        ("--run_name=", "run_name = '' must be text that is not empty"),
        ("--no-seed", "unknown setting no-seed"),
        ("--temprature 1", "unknown setting temprature; did you mean temperature?"),
        ("--config a.yaml b.yaml", "--config takes one file"),
        ("--config", "--config takes one file"),
        ("--do-sample maybe", "do-sample = 'maybe' must be true or false"),
    ],
)
def test_refusal(line, words):
    with pytest.raises(ConfigError) as refusal:
        read(line)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("1 problem")


@pytest.mark.parametrize("line", ["--fp16 false", "--max_steps -1", "--beta 0.0", "--stage trl_ppo"])
def test_a_harmless_setting_without_counterpart_is_harmless_as_text(line):
    with pytest.warns(UserWarning, match="has no effect"):
        assert read(line) == PPOConfig()


def test_every_setting_can_be_given_as_text():
    """What `--help` prints as a default is accepted as a value."""
    config = PPOConfig()
    shown = {name: [str(entry) for entry in value] if isinstance(value, tuple) else str(value)
             for name, value in vars(config).items()}  # fmt: skip
    assert from_mapping(PPOConfig, shown, texts=True) == config
