"""What other libraries do unless told, what a script computes, what a critic has of its own: nothing goes unsaid."""

import ast
import json

import pytest

from nearstep.common.errors import ConfigError
from nearstep.migration.convert import convert
from nearstep.migration.foreign import Foreign
from nearstep.migration.literals import UNKNOWN, literal
from nearstep.migration.migrate import migrate
from nearstep.migration.scripts import read_script
from nearstep.migration.settings_files import read_settings_file
from nearstep.migration.write import as_command, problems_of


def converted(library, **settings):
    return convert(Foreign(library, settings))


def verl(**settings):
    return convert(Foreign("verl", {name.replace("__", "."): value for name, value in settings.items()}))


@pytest.mark.parametrize(("text", "value"), [
    ("f'{base}/x-{n}'", "a/x-2"), ("f'{other}'", UNKNOWN), ("2**n * 3", 12), ("torch.bfloat16", "bfloat16"),
    ("cfg['vf']['lr']", 1e-4), ("cfg['no']", UNKNOWN), ("{'a': n, **more}", UNKNOWN), ("dict(a=n)", {"a": 2}),
    ("args.lr", 3e-6), ("args.none", UNKNOWN),
])  # fmt: skip
def test_what_is_known_without_running(text, value):
    known = {"base": "a", "n": 2, "cfg": {"vf": {"lr": 1e-4}}, "args.lr": 3e-6}
    assert literal(ast.parse(text, mode="eval").body, known) == value


SCRIPT = """
def get_args():
    p = argparse.ArgumentParser()
    p.add_argument("--lr", type=float, default=2e-6)
    p.add_argument("--run", required=True)
    return p.parse_args()
class CFG:
    KL = 0.07
@dataclass
class Extra:
    bs: int = field(default=4)
args = get_args()
extra = HfArgumentParser(Extra).parse_args_into_dataclasses()[0]
train, test = load_dataset("d", split="a"), load_dataset("d", split="b")
policy = AutoModelForCausalLM.from_pretrained("m", torch_dtype=torch.bfloat16)
lora = LoraConfig(r=4, target_modules=["q_proj"], lora_dropout=0.1, task_type=TaskType.CAUSAL_LM)
config = PPOConfig("out", learning_rate=args.lr, kl_coef=CFG.KL, per_device_train_batch_size=extra.bs,
                   run_name=args.run, seed=1)
config.seed = int(os.environ["SEED"])
PPOTrainer(config, tok, policy, None, Model.from_pretrained("r"), train, peft_config=lora)
"""


def test_flags_of_a_script_stand_for_their_defaults_and_what_is_computed_is_missing_not_a_default():
    found = convert(read_script(SCRIPT, "x.py"))
    kept = ("learning_rate", "kl_coef", "per_device_train_batch_size", "dtype", "use_peft", "lora_r", "lora_alpha",
            "lora_target_modules", "dataset_train_split")  # fmt: skip
    assert {name: found.settings[name] for name in kept} == {
        "learning_rate": 2e-6, "kl_coef": 0.07, "per_device_train_batch_size": 4, "dtype": "bfloat16", "use_peft": True,
        "lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj"], "dataset_train_split": "a",
    }  # fmt: skip
    assert set(found.unread) == {"run_name", "seed"}
    assert "seed" not in found.settings
    assert ("lora_dropout", 0.1) in [entry[:2] for entry in found.lost]
    assert "learning_rate = 2e-06: the script's own default of args.lr" in found.told
    said = list(problems_of(found))
    assert "seed is missing: the script computes it when it runs (line 19, int(os.environ['SEED']))" in said


def test_a_rate_that_is_computed_gets_no_default():
    found = convert(read_script("PPOConfig('o', learning_rate=rate())\nPPOTrainer(model='m')", "x.py"))
    assert "learning_rate" not in found.settings
    assert convert(read_script("PPOConfig('o')\nPPOTrainer(model='m')", "x.py")).settings["learning_rate"] == 5e-5


def test_defaults_that_change_a_run_are_written_out():
    found = converted("openrlhf", pretrain="m").settings
    assert {name: found[name] for name in ("lr_scheduler_type", "adam_beta2", "reward_clip", "lam")} == {
        "lr_scheduler_type": "cosine", "adam_beta2": 0.95, "reward_clip": 10.0, "lam": 1.0,
    }  # fmt: skip
    found = verl(data__train_batch_size=4).settings
    assert {name: found[name] for name in ("lr_scheduler_type", "weight_decay", "dual_clip")} == {
        "lr_scheduler_type": "constant", "weight_decay": 0.01, "dual_clip": 3.0,
    }  # fmt: skip


@pytest.mark.parametrize("library", ["openrlhf", "verl"])
def test_adapters_have_the_defaults_of_there(library):
    name = "lora_rank" if library == "openrlhf" else "actor_rollout_ref.model.lora_rank"
    found = converted(library, **{name: 8}).settings
    assert (found["lora_r"], found["lora_alpha"], found["lora_target_modules"]) == (8, 16, "all-linear")
    assert "use_peft" not in converted(library, **{name: 0}).settings


def test_shares_of_a_run_become_updates_where_its_length_is_known():
    # 10 prompts × 2 responses, 30 steps: 30 updates, of which verl rounds 0.15 × 30 = 4.5 down.
    given = {"data.train_batch_size": 10, "actor_rollout_ref.rollout.n": 2, "trainer.total_training_steps": 30,
             "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": 0.15}  # fmt: skip
    found = converted("verl", **given).settings
    assert (found["warmup_steps"], found["lr_scheduler_type"]) == (4, "constant_with_warmup")
    assert (found.get("vf_lr_warmup_steps"), found["vf_lr_scheduler_type"]) == (None, "constant")  # the critic's own
    unknown = converted("openrlhf", lr_warmup_ratio=0.1)
    assert "warmup_steps" not in unknown.settings
    assert "give warmup_steps, in updates" in [entry[2] for entry in unknown.lost]
    # transformers rounds up: 4 × 2 rows, 40 episodes, 5 updates, 0.1 of them.
    rows = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "total_episodes": 40}
    assert converted("trl", warmup_ratio=0.1, **rows).settings["warmup_steps"] == 1
    assert converted("mindspeed", global_batch_size=4, train_iters=20, lr_warmup_fraction=0.1, lr_decay_style="constant"
                     ).settings["lr_scheduler_type"] == "constant_with_warmup"  # fmt: skip


def test_optimizer_steps_of_divergence_ppo_are_shared_out_over_rollouts():
    rows = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    # A rollout of 4 micro-batches of 2 rows, two optimizer steps of 4 rows, twice: 4 steps are one rollout of 8.
    found = converted("trl_dppo", **rows, max_steps=4, num_iterations=2, steps_per_generation=4).settings
    assert (found["total_episodes"], found["num_mini_batches"], found["num_ppo_epochs"]) == (8, 2, 2)
    # generation_batch_size says the same: 16 rows in steps of 4.
    found = converted("trl_dppo", **rows, max_steps=8, generation_batch_size=16).settings
    assert (found["batch_size"], found["num_mini_batches"], found["total_episodes"]) == (16, 4, 32)


def test_a_critic_of_its_own_keeps_its_passes_and_what_it_cannot_keep_is_said():
    given = {"actor_rollout_ref.actor.ppo_epochs": 2, "actor_rollout_ref.actor.grad_clip": 1.0}
    same = converted("verl", **given, **{"critic.ppo_epochs": 2, "critic.grad_clip": "1"})
    assert "critic" not in same.settings
    assert same.lost == ()
    other = converted("verl", **given, **{"critic.ppo_epochs": 3, "critic.grad_clip": 0.5})
    assert (other.settings["critic"], other.settings["num_vf_epochs"]) == ("decoupled", 3)
    assert [entry[:2] for entry in other.lost] == [("critic.grad_clip", 0.5)]


def test_without_a_critic_its_settings_are_lost_and_not_refused_later():
    found = converted("openrlhf", advantage_estimator="rloo", critic_learning_rate="9e-6", n_samples_per_prompt=2)
    assert "vf_learning_rate" not in found.settings
    assert ("vf_learning_rate", "9e-6", "advantage = leave_one_out has no critic") in found.lost


def test_what_changes_nothing_is_named_and_what_does_is_lost():
    found = converted("trl", fp16="False", attn_implementation="eager", lora_dropout="0.0", gradient_checkpointing=None)
    assert set(found.idle) == {"fp16", "attn_implementation", "lora_dropout"}
    assert "# Left out, since nothing depends on it here: fp16, attn_implementation, lora_dropout." in as_command(
        found, "x"
    )
    assert [entry[:2] for entry in converted("trl", lora_dropout="0.05").lost] == [("lora_dropout", "0.05")]


def test_evaluation_needs_something_to_evaluate_on():
    assert "eval_steps" not in converted("aligntune", eval_interval=5).settings
    found = converted("trl", eval_steps=5, eval_strategy="steps").settings
    assert (found["eval_steps"], found["dataset_test_split"]) == (5, "test")


def test_rows_of_a_yaml_that_point_at_others():
    text = """
actor_rollout_ref:
  _target_: a.B
  actor: {ppo_epochs: 3, ppo_mini_batch_size: 4}
critic:
  ppo_epochs: ${oc.select:actor_rollout_ref.actor.ppo_epochs,1}
  forward: ${.ppo_epochs}
trainer: {project_name: p, default_local_dir: "out/${trainer.project_name}/${oc.env:X}", total_epochs: "${absent}"}
data: {train_batch_size: "${oc.select:data.no,8}"}
"""
    found = read_settings_file(text, "x.yaml").settings
    assert found["critic.ppo_epochs"] == found["critic.forward"] == 3
    assert found["trainer.default_local_dir"] == "out/p/${oc.env:X}"
    assert (found["trainer.total_epochs"], found["data.train_batch_size"]) == (None, 8)
    assert "actor_rollout_ref._target_" not in found


@pytest.mark.parametrize(("text", "said"), [
    ("distributed_type: DEEPSPEED\nnum_processes: 8", "x.yaml is accelerate's own file"),
    ("zero_optimization: {stage: 2}", "x.yaml is a configuration of DeepSpeed"),
])  # fmt: skip
def test_files_of_launchers_are_known(text, said):
    with pytest.raises(ConfigError) as error:
        read_settings_file(text, "x.yaml")
    assert said in str(error.value)


def test_a_notebook_is_read_by_its_cells_and_by_its_commands(tmp_path):
    def notebook(name, *sources):
        cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
        path = tmp_path / name
        path.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# x"]}, *cells]}))
        return path

    code = "from trl import PPOConfig, PPOTrainer, AutoModelForCausalLMWithValueHead\nPPOTrainer().step(q, r, s)"
    out = migrate(notebook("a.ipynb", "%pip install trl\n!nvidia-smi", code))
    assert "from nearstep.classic import PPOConfig, PPOTrainer, AutoModelForCausalLMWithValueHead" in out
    assert "pip install" not in out
    out = migrate(notebook("b.ipynb", "!python ppo.py --output_dir o \\\n  --learning_rate 1e-6"))
    assert "--learning_rate 1e-6" in out
    (tmp_path / "c.ipynb").write_text("[]")
    with pytest.raises(ConfigError, match="is no notebook"):
        migrate(tmp_path / "c.ipynb")


def test_how_a_script_of_the_shell_was_read_is_said(tmp_path):
    path = tmp_path / "x.sh"
    path.write_text(
        'if [ "$D" ]; then A="--seed 4"; fi\npython ppo.py $A \\\n  # data\n  --dataset_name d --output_dir o\n'
    )
    out = migrate(path)
    assert '# every branch was read, the later wins: if [ "$D" ]' in out
    assert "# outside of every command: --dataset_name." in out
    path.write_text("python ppo.py --output_dir o/$(date +%s) --seed $S\n")
    out = migrate(path)
    assert "seed = $S: the file does not set this variable" in out
    assert "output_dir = o" not in out  # the shell knows it when it runs


def test_settings_files_of_hydra_beside_a_command_are_named():
    found = convert(read_settings_file("actor_rollout_ref: {a: 1}", "x.yaml"))
    assert found.library == "verl"
    from nearstep.migration.launches import launch

    note = launch(["python", "-m", "verl.trainer.main_ppo", "--config-name", "mine", "data.train_batch_size=2"]).notes
    assert note == ("--config-name mine has settings of its own, which are not here: give nearstep migrate that file",)
    assert launch(["python", "-m", "verl.trainer.main_ppo", "--config-name=ppo_megatron_trainer"]).notes == ()
