"""The settings file: flat YAML, beaten by flags, and refused with the line of what is wrong."""

import pytest

from nearstep.cli.commands import COMMANDS
from nearstep.cli.config_file import read_config_file
from nearstep.common.errors import ConfigError

ppo = COMMANDS[0]
RUNNABLE = "model_name_or_path: me/policy\ndataset_name: me/prompts\nreward_model_path: me/scorer\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "run.yaml"


def test_values_keep_their_yaml_types(file):
    file.write_text("\ufeff# a run\nlr: 1e-6\nseed: 3\nuse_peft: yes\nreward_funcs: [a.py:f]\nmax_grad_norm:\n")
    assert read_config_file(file) == {
        "lr": "1e-6", "seed": 3, "use_peft": True, "reward_funcs": ["a.py:f"], "max_grad_norm": None,
    }  # fmt: skip


def test_an_empty_file_sets_nothing(file):
    file.write_text("# nothing yet\n")
    assert read_config_file(file) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 3\nseed: 4\n", ["run.yaml, line 2: seed stands there twice"]),
        ("ppo:\n  seed: 3\n", ["run.yaml, line 1: ppo is nested"]),
        ("seed: 1\nseed: 2\nlora: {r: 3}\n", ["line 2: seed stands there twice", "line 3: lora is nested"]),
        ("- seed\n- 3\n", ["run.yaml holds no `name: value` lines"]),
        ("seed\n", ["run.yaml holds no `name: value` lines"]),
        ("seed: [3\n", ["run.yaml is no YAML", "line 2"]),
        ("output_dir: !!python/object/apply:os.getcwd []\n", ["run.yaml is no YAML", "line 1"]),
    ],
)
def test_refusal_names_the_line(file, text, words):
    file.write_text(text)
    with pytest.raises(ConfigError) as refusal:
        read_config_file(file)
    assert all(part in str(refusal.value) for part in words)


def test_a_file_that_is_no_text_is_refused(file):
    file.write_bytes(b"seed: \xff")
    with pytest.raises(ConfigError, match=r"run\.yaml is no UTF-8 text: byte 6"):
        read_config_file(file)


def test_a_missing_file_is_refused(file):
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*run\.yaml: No such file or directory"):
        read_config_file(file)


def test_flags_beat_the_file_under_any_spelling(file):
    file.write_text(RUNNABLE + "lr: 1e-6\nkl-coef: 0.1\nuse_peft: true\nseed: 5\n")
    config = ppo.read(["--config", str(file), "--learning-rate", "2e-6", "--kl_coef=0.2", "--no-use-peft"])
    assert (config.learning_rate, config.kl_coef, config.use_peft, config.seed) == (2e-6, 0.2, False, 5)


def test_a_flag_replaces_a_wrong_value_of_the_file(file):
    file.write_text(RUNNABLE + "seed: often\n")
    assert ppo.read(["--config", str(file), "--seed", "3"]).seed == 3


def test_text_that_yaml_reads_otherwise_wants_quotes(file):
    file.write_text(RUNNABLE + "run_name: 2026\nstop_token: no\n")
    with pytest.raises(ConfigError) as refusal:
        ppo.read(["--config", str(file)])
    assert "run_name = 2026 must be text (in quotes)" in str(refusal.value)
    assert "stop_token = False must be text (in quotes)" in str(refusal.value)


def test_problems_of_file_and_flags_come_in_one_message(file):
    file.write_text("model_name_or_path: me/policy\nkl_coeff: 0.1\nseed: often\n")
    with pytest.raises(ConfigError) as refusal:
        ppo.read(["--config", str(file), "--top_p", "2", "--lam"])
    message = str(refusal.value)
    assert message.startswith("6 problems in the settings:")
    for words in (
        "kl_coeff",
        "seed = 'often'",
        "top_p = '2'",
        "--lam needs a value",
        "dataset_name is missing",
        "no reward",
    ):
        assert words in message
