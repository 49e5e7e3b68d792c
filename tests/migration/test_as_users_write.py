"""Scripts and commands as people write them: variables that grow, arguments by place, settings set later."""

import pytest

from nearstep.migration.convert import convert
from nearstep.migration.foreign import Foreign
from nearstep.migration.imports import with_our_imports
from nearstep.migration.launches import launch
from nearstep.migration.scripts import read_script
from nearstep.migration.settings_files import read_settings_file
from nearstep.migration.shell import commands


def converted(library, **settings):
    return convert(Foreign(library, settings))


@pytest.mark.parametrize(("text", "words"), [
    ("A=\"--a 1\"\nA+=\" --b 2\"\nrun $A", ["run", "--a", "1", "--b", "2"]),
    ("A=(--a 1)\nA+=(\n  --b 2  # two\n)\nrun \"${A[@]}\"", ["run", "--a", "1", "--b", "2"]),
    ("A=1; B=2 ; run $A $B", ["run", "1", "2"]),
    ("export A=1 B=2\nrun $A $B", ["run", "1", "2"]),
    ("declare -a A=(--a 1)\nrun ${A[@]}", ["run", "--a", "1"]),
    ("if [ $X ]; then A=\"--a 1\"; fi\nrun $A", ["run", "--a", "1"]),
    ("run --a ${1:-x} --b $1", ["run", "--a", "x", "--b", "$1"]),
    ("N=4\nrun --a $((N * (2 + $N))) --b $((7 / 2)) --c $((N * M))",
     ["run", "--a", "24", "--b", "3", "--c", "$((N * M))"]),
    ("run \\\n  `# why` \\\n  --a 1", ["run", "--a", "1"]),
    ("D=out/$(date +%s)\nrun --a $D --b \"$(pwd)/x y\"", ["run", "--a", "out/$(date +%s)", "--b", "$(pwd)/x y"]),
])  # fmt: skip
def test_variables_that_grow_and_words_that_are_worked_out(text, words):
    found = [piece for piece in commands(text) if piece[0] == "run"]
    assert found == [words]


def test_what_a_script_was_given_itself_is_no_value_of_the_last_flag():
    found = launch(["python", "ppo.py", "--output_dir", "out", "$@"])
    assert found.settings == {"output_dir": "out"}
    assert found.notes == ("flags that the script was given itself go behind the command",)
    assert launch(["python", "ppo.py", "--output_dir", "out"]).notes == ()


PPO = """
base = "a/policy"
args = PPOConfig("out", num_ppo_epochs=4, total_episodes=2 * 8, run_name=base + "-x", **dict(lam=0.9, seed=1))
args.num_ppo_epochs = 2
setattr(args, "seed", 5)
tokenizer = AutoTokenizer.from_pretrained(base)
tokenizer.pad_token = "x"
raw = load_dataset("a/data")
train = prepare(raw["part"].map(f), tokenizer)
PPOTrainer(args, tokenizer, AutoModelForCausalLM.from_pretrained(base), None, Model.from_pretrained("a/reward"), train,
           eval_dataset=load_dataset("a/data")["test"])
"""


def test_arguments_by_place_and_settings_set_later_are_read():
    found = read_script(PPO, "x.py")
    assert found.settings == {
        "output_dir": "out", "num_ppo_epochs": 2, "total_episodes": 16, "run_name": "a/policy-x", "lam": 0.9, "seed": 5,
        "model_name_or_path": "a/policy", "reward_model_path": "a/reward", "dataset_name": "a/data",
        "dataset_train_split": "part", "eval_dataset_name": "a/data", "dataset_test_split": "test",
    }  # fmt: skip
    assert found.notes == ()


def test_settings_that_come_from_the_command_line_can_be_set_later_too():
    text = "a, args = parser.parse()\nargs.seed = 3\nother.seed = 4\nPPOTrainer(args=args, model='m')"
    assert read_script(text, "x.py").settings == {"seed": 3, "model_name_or_path": "m"}


def test_divergence_ppo_has_its_model_first_and_the_draft_its_settings():
    text = "args = DPPOConfig('out', epsilon=0.1)\nDPPOTrainer('m', score, args, load_dataset('d', split='s'))"
    found = read_script(text, "x.py")
    assert found.library == "trl_dppo"
    assert (found.settings["model_name_or_path"], found.settings["dataset_name"]) == ("m", "d")
    assert found.notes == ("reward_funcs = score: what it is, only the script knows",)
    text = "args = DPPOConfig('out', num_vf_epochs=2)\nDPPOTrainer(args, tok, 'm', 'm', 'r', load_dataset('d'))"
    found = read_script(text, "x.py")
    assert found.library == "decoupled_draft"
    assert (found.settings["model_name_or_path"], found.settings["reward_model_path"]) == ("m", "r")


@pytest.mark.parametrize(("rows", "place", "split"), [
    ("load_dataset('json', data_files=['a.jsonl'])['train']", "a.jsonl", None),
    ("load_dataset('json', data_files={'train': 'a.jsonl'}, split='train')", "a.jsonl", None),
    ("load_dataset('d')['test']", "d", "test"),
    ("load_dataset('d').train_test_split(0.1)['test']", "d", None),
])  # fmt: skip
def test_where_rows_come_from(rows, place, split):
    found = read_script(f"rows = {rows}\nPPOTrainer(args=a, model='m', train_dataset=rows)", "x.py")
    assert found.settings["dataset_name"] == place
    assert found.settings.get("dataset_train_split") == split


def test_rows_that_a_script_chooses_are_told():
    text = "d = load_dataset('d')\nd = d.select(range(9))\nPPOTrainer(args=a, model='m', train_dataset=d)"
    assert read_script(text, "x.py").notes[0] == "line 2: .select(…) chooses rows: all of d are taken here"


def test_imports_of_the_first_trl_are_ours_wherever_they_stand():
    text = """import trl
try:
    from trl import PPOConfig, set_seed
    from trl.core import respond_to_batch
    from trl.import_utils import is_xpu_available
    from trl.core import masked_mean
except ImportError:
    pass
trl.create_reference_model(m)
"""
    assert (
        with_our_imports(text)
        == """from nearstep import classic as trl
try:
    from nearstep.classic import PPOConfig
    from transformers import set_seed
    from nearstep.classic import respond_to_batch
    from transformers.utils import is_torch_xpu_available as is_xpu_available
    from trl.core import masked_mean  # not in nearstep
except ImportError:
    pass
trl.create_reference_model(m)
"""
    )
    assert with_our_imports("import trl.core\n") == "import trl.core  # not in nearstep\n"
    assert with_our_imports("import trl\ntrl.a()\n") == "import trl  # not in nearstep: a\ntrl.a()\n"


def test_parameters_of_a_reward_are_no_settings_of_the_run():
    text = "model: {a: 1}\ntrain: {}\nrewards: [{type: length, params: {max_length: 50}}]"
    found = convert(read_settings_file(text, "x.yaml"))
    assert "max_length" not in found.settings
    assert ("rewards.params.max_length", 50) in [entry[:2] for entry in found.lost]


def test_weights_of_functions_beside_a_reward_model():
    given = {"reward_functions": ["a", "b"], "reward_function_weights": [0.2, 0.8]}
    assert converted("aligntune", **given, reward_model_path="r").settings["reward_weights"] == [1.0, 0.2, 0.8]
    assert converted("aligntune", **given).settings["reward_weights"] == [0.2, 0.8]


def test_steps_of_a_run_are_its_only_length():
    found = converted("verl", **{"data.train_batch_size": 4, "trainer.total_training_steps": 2,
                                 "trainer.total_epochs": 15})  # fmt: skip
    assert found.settings["total_episodes"] == 8
    assert "num_train_epochs" not in found.settings
    assert converted("aligntune", max_steps=2, batch_size=3, num_generations=2).settings["total_episodes"] == 12
    rows = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_processes": 2}
    assert converted("trl_dppo", max_steps=3, **rows).settings["total_episodes"] == 48


def test_openrlhf_switches_off_by_minus_one_and_blends_with_commas():
    found = converted("openrlhf", save_steps="-1", eval_steps="-1", prompt_data="json@a,b", prompt_data_probs="0.3,0.7",
                      param_dtype="bf16", use_wandb="False").settings  # fmt: skip
    assert not {"save_steps", "eval_steps", "report_to"} & found.keys()
    assert found["dataset_name"] == ["a", "b"]
    assert found["dataset_weights"] == ["0.3", "0.7"]
    assert found["bf16"] is True
    assert converted("openrlhf", save_steps="20").settings["save_steps"] == "20"
