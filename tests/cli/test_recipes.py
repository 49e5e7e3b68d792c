"""Recipes: presets in Python, by name on the command line, and as files; each runs for two updates."""

import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from transformers import HfArgumentParser

import nearstep
from nearstep.cli.commands import COMMANDS
from nearstep.cli.main import main
from nearstep.config.axes import RANGED_HEADS
from nearstep.config.recipes import RECIPES
from nearstep.config.settings import from_mapping
from tests.tiny import byte_tokenizer, tiny_causal_lm

pytestmark = pytest.mark.slow  # dear, and the parts have tests of their own

PPO = COMMANDS[0]
RANGE = ["--value_min", "0", "--value_max", "5"]
FILES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.fixture
def given(tmp_path):
    tiny_causal_lm().save_pretrained(tmp_path / "policy")
    byte_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps({"prompt": "abc" * n}) for n in range(1, 9)))
    (tmp_path / "scorer.py").write_text(
        "def length(completion_ids, **rest):\n    return [float(len(i)) for i in completion_ids]\n"
    )
    return [
        "--model_name_or_path", str(tmp_path / "policy"), "--dataset_name", str(tmp_path / "prompts.jsonl"),
        "--reward_funcs", f"{tmp_path}/scorer.py:length", "--output_dir", str(tmp_path / "out"),
        "--total_episodes", "16", "--response_length", "5", "--use_cpu",
    ]  # fmt: skip


def test_a_recipe_may_stand_in_a_settings_file(tmp_path, given, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text("recipe: dapo\nnum_generations: 4\n")
    settings = PPO.read(["--config", str(file), *given])
    assert (settings.cliprange_high, settings.num_generations) == (RECIPES["dapo"]["cliprange_high"], 4)
    assert PPO.read(["--config", str(file), "--recipe", "vapo", *given]).vf_warmup_updates == 50  # the flag wins
    file.write_text("recipe: dapoo\n")
    assert main(["ppo", "--config", str(file), *given]) == 2
    assert "unknown recipe dapoo; did you mean dapo?" in capsys.readouterr().err


def test_python_says_how_recipes_are_named_there():
    with pytest.raises(nearstep.ConfigError, match=r"in Python write PPOConfig\(\*\*RECIPES\[name\]"):
        nearstep.PPOConfig(recipe="dapo")
    assert nearstep.PPOConfig(**RECIPES["dapo"]).cliprange_high == RECIPES["dapo"]["cliprange_high"]


def test_every_recipe_has_a_file():
    assert {file.stem for file in FILES} == set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_by_name_runs(name, given, tmp_path):
    changed = ["--vf_warmup_updates", "1"] if "vf_warmup_updates" in RECIPES[name] else []
    changed += RANGE if RECIPES[name].get("value_head") in RANGED_HEADS else []
    changed += ["--total_episodes", "32"] if name == "scale_rl" else []  # 16 responses to a prompt
    assert main(["ppo", "--recipe", name, *given, *changed]) == 0
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_warm_up_that_leaves_the_policy_no_update_is_refused(given, capsys, tmp_path):
    assert main(["ppo", "--recipe", "vapo", *given]) == 2
    assert (
        "vf_warmup_updates = 50: in these only the critic trains, and the run has 2 updates" in capsys.readouterr().err
    )
    assert main(["ppo", "--warmup_steps", "100", *given, "--total_episodes", "8"]) == 2
    assert "warmup_steps = 100 is no shorter than the run, which has 1 update: its learning" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_long_warm_up_of_the_learning_rate_is_told(given, capsys):
    assert main(["ppo", "--warmup_steps", "100", *given]) == 0
    told = "warmup_steps = 100 is no shorter than the run, which has 2 updates: the learning rate ends at 0.01 of its"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_file_holds_the_preset(file, given):
    given = [*given, *(RANGE if RECIPES[file.stem].get("value_head") in RANGED_HEADS else [])]
    assert PPO.read([*given, "--config", str(file)]) == PPO.read([*given, "--recipe", file.stem])


def test_a_recipe_file_runs(given, tmp_path):
    assert main(["ppo", *given, "--config", str(FILES[0].with_stem("dapo"))]) == 0
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("flags", [("shared",), ("adapter", "--use_peft")], ids=lambda flags: flags[0])
def test_a_critic_on_the_policys_weights_runs(flags, given, tmp_path):
    assert main(["ppo", "--critic_trunk", *flags, *given]) == 0
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"value/grad_norm", "loss/value_avg", "vf_lr", "val/explained_variance"} <= last.keys()
    assert (tmp_path / "out" / "value" / "config.json").is_file()


def test_file_beats_recipe_and_flag_beats_both(given, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("temperature: 0.5\nkl-coef: 0.3\n")
    settings = PPO.read(["--recipe", "divergence", "--config", str(tmp_path / "run.yaml"), "--kl_coef", "0.4", *given])
    assert (settings.trust_region, settings.temperature, settings.kl_coef) == ("binary_tv", 0.5, 0.4)
    said = f"--recipe divergence: {tmp_path / 'run.yaml'} has other values of temperature, and they hold"
    assert said in capsys.readouterr().err


def test_an_unknown_recipe_names_the_nearest(given, capsys):
    assert main(["ppo", "--recipe", "decopled", *given]) == 2
    assert "unknown recipe decopled; did you mean decoupled?" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "words"), [
    ("dppo", "decoupled` (DecoupledPPOConfig) puts the critic"), ("DPPO", "replaces the clip by a divergence"),
    ("grpo", "unknown recipe grpo; there are decoupled, divergence"),
])  # fmt: skip
def test_a_recipe_that_is_none_gets_no_far_guess(name, words, given, capsys):
    assert main(["ppo", "--recipe", name, *given]) == 2
    assert words in capsys.readouterr().err


def test_presets_in_python_take_the_same_settings():
    config = nearstep.DecoupledPPOConfig(vf_learning_rate=1e-4, num_vf_epochs=2)
    assert isinstance(config, nearstep.PPOConfig)
    assert (config.critic, config.vf_learning_rate, config.num_vf_epochs) == ("decoupled", 1e-4, 2)
    assert nearstep.DivergencePPOConfig(trust_region="topk_kl").trust_region == "topk_kl"
    assert nearstep.TRLParityConfig().score_position == "after_eos"
    with pytest.raises(nearstep.ConfigError, match="vf_learning_rate"):
        nearstep.DecoupledPPOConfig(vf_learnin_rate=1.0)


PRESETS = {"decoupled": nearstep.DecoupledPPOConfig, "divergence": nearstep.DivergencePPOConfig,
           "trl_parity": nearstep.TRLParityConfig}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_class_with_the_fields_of_ppo_and_the_defaults_of_its_recipe(name):
    preset, plain = PRESETS[name], nearstep.PPOConfig()
    changed = {
        field.name: field.default for field in dataclasses.fields(preset) if field.default != vars(plain)[field.name]
    }
    assert changed == RECIPES[name]
    assert [field.name for field in dataclasses.fields(preset)] == list(vars(plain))
    given = preset(output_dir="elsewhere", cliprange=0.1)
    assert dataclasses.asdict(given) == dataclasses.asdict(
        nearstep.PPOConfig(**RECIPES[name], output_dir="elsewhere", cliprange=0.1)
    )
    for again in (
        dataclasses.replace(given), preset(**dataclasses.asdict(given)),
        from_mapping(preset, dataclasses.asdict(given), texts=False), pickle.loads(pickle.dumps(given)),
    ):  # fmt: skip
        assert (type(again), again) == (preset, given)
    with pytest.raises(nearstep.ConfigError, match="kl_coef = -1"):
        dataclasses.replace(given, kl_coef=-1)


@pytest.mark.parametrize("config", [nearstep.PPOConfig, *PRESETS.values(), nearstep.RewardConfig])
def test_transformers_own_parser_reads_a_configuration_and_leaves_it_as_it_was(config):
    parser = HfArgumentParser(config)
    (found,) = parser.parse_args_into_dataclasses([], look_for_args_file=False)
    assert (type(found), found) == (config, config())
    for setting in dataclasses.fields(config):
        assert f"--{setting.name}" in parser.format_help()
    assert config(max_grad_norm=None).max_grad_norm is None  # the parser takes `| None` out of the fields' types


def test_words_of_transformers_own_parser_become_what_the_settings_are():
    words = "--stop_token_id 5 66 --dataset_name a.jsonl b.jsonl --dataset_weights 1 2.5 --columns prompt=question"
    words += " --eval_steps 4 --cliprange_high 0.3 --whiten_advantages false --no_log_rollouts --use_peft"
    words += ' --vf_learning_rate 1e-4 --chat_template_kwargs {"enable_thinking":false}'
    (found,) = HfArgumentParser(nearstep.DecoupledPPOConfig).parse_args_into_dataclasses(
        words.split(), look_for_args_file=False
    )
    assert found == nearstep.DecoupledPPOConfig(
        stop_token_id=(5, 66), dataset_name=("a.jsonl", "b.jsonl"), dataset_weights=(1.0, 2.5),
        columns={"prompt": "question"}, eval_steps=4, cliprange_high=0.3, whiten_advantages=False, use_peft=True,
        log_rollouts=False, vf_learning_rate=1e-4, chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
