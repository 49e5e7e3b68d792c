"""How launch scripts, settings files and scripts of other libraries are read, and what cannot be read is named."""

import pytest

from nearstep.cli.main import main
from nearstep.common.errors import ConfigError
from nearstep.migration.convert import convert
from nearstep.migration.foreign import Foreign
from nearstep.migration.launches import launch
from nearstep.migration.migrate import migrate
from nearstep.migration.scripts import read_script
from nearstep.migration.settings_files import read_settings_file
from nearstep.migration.shell import commands


def converted(library, **settings):
    return convert(Foreign(library, settings))


@pytest.mark.parametrize(("text", "words"), [
    ("a b \\\n  c | tee x", [["a", "b", "c"], ["tee", "x"]]),
    ("N=4\nrun --n $N --m ${N} --k ${OTHER}", [["run", "--n", "4", "--m", "4", "--k", "${OTHER}"]]),
    ('ARGS="\n  --a 1 \\\n  --b 2\n"\nrun $ARGS # said', [["run", "--a", "1", "--b", "2"]]),
    ("ARGS=(\n  x.y=1  # one\n  z=2\n)\nrun \"${ARGS[@]}\" 2>&1 | tee", [["run", "x.y=1", "z=2"]]),
    ("A=${B:-5}\nrun $A 'literal $A'", [["run", "5", "literal 5"]]),
    ("CUDA_VISIBLE_DEVICES=0 python x.py", [["CUDA_VISIBLE_DEVICES=0", "python", "x.py"]]),
    ('srun bash -c "a && run --x 1"', [["srun", "bash", "-c", "a && run --x 1"], ["a"], ["run", "--x", "1"]]),
    ("echo it's broken", [["echo", "it's", "broken"]]),
])  # fmt: skip
def test_the_words_of_a_shell_script(text, words):
    found = [piece for piece in commands(text) if piece != ["tee"]]
    assert found == words


@pytest.mark.parametrize(("words", "library"), [
    ("python3 -m openrlhf.cli.train_ppo_ray --pretrain a", "openrlhf"),
    ("python3 -m verl.trainer.main_ppo data.train_files=a", "verl"),
    ("torchrun --nproc_per_node 8 posttrain_gpt.py --stage trl_ppo --ref-model a", "mindspeed"),
    ("accelerate launch examples/scripts/ppo/ppo_tldr.py --learning_rate 1", "trl"),
    ("python examples/scripts/ppo/dppo.py --vf_learning_rate 1", "decoupled_draft"),
    ("python dppo.py --divergence_type binary_kl", "trl_dppo"),
    ("python train_sft.py --x 1", None),
])  # fmt: skip
def test_a_command_is_told_by_what_it_starts(words, library):
    found = launch(words.split())
    assert (found and found.library) == library


def test_batches_count_prompts_there_and_responses_here():
    found = converted("openrlhf", rollout_batch_size="64", n_samples_per_prompt="4", train_batch_size="32")
    assert (found.settings["batch_size"], found.settings["num_mini_batches"]) == (256, 8)
    names = {"data.train_batch_size": 64, "actor_rollout_ref.rollout.n": 4,
             "actor_rollout_ref.actor.ppo_mini_batch_size": 16, "trainer.total_training_steps": 10}  # fmt: skip
    found = converted("verl", **names)
    assert (found.settings["batch_size"], found.settings["num_mini_batches"]) == (256, 4)
    assert found.settings["total_episodes"] == 2560


def test_the_names_with_dots_of_newer_releases_mean_the_same():
    old = converted("openrlhf", rollout_batch_size="64", train_batch_size="32", actor_learning_rate="1e-6", lambd="1")
    dotted = {"rollout.batch_size": "64", "train.batch_size": "32", "actor.adam.lr": "1e-6",
              "algo.advantage.lambd": "1"}  # fmt: skip
    assert converted("openrlhf", **dotted).settings == old.settings


@pytest.mark.parametrize(("library", "given", "shard"), [
    ("openrlhf", {"actor_num_gpus_per_node": "8", "zero_stage": "3"}, -1),
    ("openrlhf", {"actor.num_gpus_per_node": "8", "ds.zero_stage": "3"}, -1),
    ("openrlhf", {"actor_num_gpus_per_node": "8", "zero_stage": "2"}, None),
    ("openrlhf", {"actor_num_gpus_per_node": "1", "zero_stage": "3"}, None),
    ("verl", {"trainer.n_gpus_per_node": 8, "actor_rollout_ref.actor.strategy": "fsdp2"}, -1),
    ("verl", {"trainer.n_gpus_per_node": 8, "actor_rollout_ref.actor.fsdp_config.fsdp_size": 4,
              "critic.strategy": "fsdp"}, 4),
    ("verl", {"trainer.n_gpus_per_node": 8, "actor_rollout_ref.actor.strategy": "megatron"}, None),
])  # fmt: skip
def test_weights_in_pieces_there_are_in_pieces_here(library, given, shard):
    assert converted(library, **given).settings.get("dp_shard") == shard


def test_what_generates_there_is_lost_with_the_setting_that_names_it_here():
    lost = {name: why for name, _, why in converted("openrlhf", vllm_num_engines="4", async_train=True, **{
        "vllm.num_engines": "4", "train.async_enable": True, "adam_offload": True}).lost}  # fmt: skip
    assert "engine_url" in lost["vllm_num_engines"]
    assert lost["vllm.num_engines"] == lost["vllm_num_engines"]
    assert "max_staleness" in lost["async_train"]
    assert lost["train.async_enable"] == lost["async_train"]
    assert "dp_shard" in lost["adam_offload"]


def test_one_limit_for_prompt_and_response_takes_the_place_of_two():
    settings = converted("openrlhf", **{"data.max_len": "4096"}).settings
    assert (settings["max_length"], settings["response_length"]) == ("4096", "4096")
    assert "max_prompt_length" not in settings
    assert converted("openrlhf", **{"data.max_len": "4096", "rollout.max_new_tokens": "9"}).settings[
        "response_length"
    ] == "9"  # fmt: skip


@pytest.mark.parametrize(("given", "expected"), [
    ({}, {"kl_coef": 0.0}),
    ({"algorithm.use_kl_in_reward": True, "algorithm.kl_ctrl.kl_coef": 0.01}, {"kl_coef": 0.01}),
    ({"actor_rollout_ref.actor.use_kl_loss": True, "actor_rollout_ref.actor.kl_loss_coef": 0.02},
     {"kl_coef": 0.02, "kl_in": "loss", "kl_estimator": "k3"}),
    ({"algorithm.use_kl_in_reward": True, "algorithm.kl_ctrl.type": "adaptive", "algorithm.kl_ctrl.target_kl": 0.2},
     {"kl_target": 0.2, "kl_horizon": 10000, "kl_coef": 0.001}),
])  # fmt: skip
def test_verl_has_three_places_for_a_kl(given, expected):
    settings = converted("verl", **given).settings
    assert {name: settings.get(name) for name in expected} == expected
    assert ("kl_in" in settings) == ("kl_in" in expected)


def test_defaults_of_theirs_are_written_out_and_a_critic_has_none_where_there_is_none():
    assert converted("openrlhf").settings["lam"] == 1.0
    without = converted("openrlhf", advantage_estimator="rloo")
    assert without.settings["advantage"] == "leave_one_out"
    assert not {"lam", "vf_learning_rate", "cliprange_value"} & without.settings.keys()
    assert "kl_coef" in without.defaults


def test_nothing_is_dropped_in_silence():
    found = converted("openrlhf", zero_stage="1", max_samples="9", a_flag_of_tomorrow="1")
    assert {name: why for name, _, why in found.lost} == {
        "zero_stage": "every process holds the networks whole; zero_stage = 2 divides gradients and moments, dp_shard "
        "= -1 weights too",
        "max_samples": "cut the data set, or give total_episodes",
        "a_flag_of_tomorrow": "no counterpart is known",
    }


def test_a_script_is_read_by_its_syntax_alone(tmp_path):
    text = """
import os
from trl.experimental.ppo import PPOConfig, PPOTrainer
raise SystemExit("it ran")
RATE = 1e-5
config = PPOConfig(output_dir="out", learning_rate=RATE, seed=int(os.environ["SEED"]), **more)
policy = AutoModelForCausalLM.from_pretrained("a/policy")
data = load_dataset("a/data", split="descriptiveness")
data = data.map(tokenize)
PPOTrainer(args=config, model=policy, reward_model=make(), train_dataset=data)
"""
    found = read_script(text, "x.py")
    assert found.library == "trl"
    assert found.settings == {
        "output_dir": "out", "learning_rate": 1e-5, "model_name_or_path": "a/policy", "dataset_name": "a/data",
        "dataset_train_split": "descriptiveness",
    }  # fmt: skip
    assert list(found.notes) == [
        "line 6: **more is not known without running it",
        "reward_model = make(): what it is, only the script knows",
    ]
    assert found.unread == {"seed": "line 6, int(os.environ['SEED'])"}


@pytest.mark.parametrize(("text", "library"), [
    ("actor_rollout_ref: {model: {path: a}}\ntrainer: {nnodes: 1}", "verl"),
    ("algo: ppo\nmodel: {name_or_path: a}\ntrain: {max_steps: 2}", "aligntune"),
    ("pretrain: a\nactor_learning_rate: 1e-6", "openrlhf"),
    ("learning_rate: 1e-6\nvf_update_frequency: 2", "decoupled_draft"),
    ("learning_rate: 1e-6\ndivergence_type: binary_kl", "trl_dppo"),
    ("learning_rate: 1e-6", "trl"),
])  # fmt: skip
def test_a_settings_file_is_told_by_its_names(text, library):
    assert read_settings_file(text, "x.yaml").library == library


def test_a_list_of_data_sets_is_taken_together():
    found = read_settings_file("model: {a: 1}\ntrain: {}\ndatasets: [{name: a, split: x}, {name: b}]", "x.yaml")
    assert found.settings["datasets.name"] == ["a", "b"]


@pytest.mark.parametrize(("name", "text", "said"), [
    ("x.sh", "python train_sft.py --lr 1", "no command of a library that is known here"),
    ("x.py", "print(1)", "no call of PPOTrainer"),
    ("x.py", "def f(:", "no Python"),
    ("x.yaml", "a: [", "is no YAML"),
    ("x.yaml", "- 1", "holds no settings"),
    ("x.sh", "\xff".encode("latin-1"), "is no UTF-8 text: byte 0"),
])  # fmt: skip
def test_what_cannot_be_read_is_named(name, text, said, tmp_path):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError) as error:
        migrate(tmp_path / name)
    assert said in str(error.value)


def test_the_command_prints_ours_as_a_command_or_as_yaml(tmp_path, capsys):
    file = tmp_path / "run.sh"
    file.write_text("python -m openrlhf.cli.train_ppo_ray --pretrain policy --reward_pretrain $RM --seed 7 "
                    "--actor_num_gpus_per_node 2 --prompt_data p.jsonl")  # fmt: skip
    assert main(["migrate", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "torchrun --nproc_per_node 2 -m nearstep ppo \\\n    --model_name_or_path policy" in printed
    assert '--reward_model_path "$RM"' in printed
    assert "#   reward_model_path = $RM: the file does not set this variable" in printed
    assert main(["migrate", str(file), "--form", "yaml"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 7\n" in printed
    assert "learning_rate: 1.0e-06\n" in printed
    assert main(["migrate", str(tmp_path / "no.sh")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["migrate"]) == 2
