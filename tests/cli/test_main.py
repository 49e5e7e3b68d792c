"""What the command line prints and what it ends with: 0 done, 1 failed, 2 wrongly asked, 130 interrupted."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import nearstep
from nearstep.cli.commands import COMMANDS
from nearstep.cli.main import main
from nearstep.common.errors import ConfigError, DataError
from tests.lanes import slow

RUNNABLE = ("--model_name_or_path", "me/policy", "--dataset_name", "me/prompts", "--reward_model", "me/scorer")


@pytest.fixture
def trainer(monkeypatch):
    """A stand-in for the trainer that keeps its arguments and may be told to fail."""

    class PPOTrainer:
        failure: BaseException | None = None

        def __init__(self, args):
            PPOTrainer.args = args

        def train(self):
            if PPOTrainer.failure:
                raise PPOTrainer.failure

    monkeypatch.setattr("nearstep.cli.ppo.stay_offline_if_hub_is_silent", lambda config: None)
    module = ModuleType("nearstep.trainer")
    module.PPOTrainer = PPOTrainer
    monkeypatch.setitem(sys.modules, "nearstep.trainer", module)
    return PPOTrainer


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_lists_the_commands(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert all(f"  {command.name} " in printed for command in COMMANDS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nearstep {nearstep.__version__}\n"


EVERY_COMMAND = "there are " + ", ".join(command.name for command in COMMANDS)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("pop", "did you mean ppo?"), ("dmeo", "did you mean demo?"), ("scor", "did you mean score?"),
        *((word, EVERY_COMMAND) for word in ("zzz", "plot", "sft", "dpo", "train")),
    ],
)  # fmt: skip
def test_an_unknown_command_names_the_nearest_if_one_is_near(word, meant, capsys):
    assert main([word]) == 2
    assert capsys.readouterr().err == f"nearstep: unknown command {word}; {meant}\n"


def test_a_command_without_flags_says_what_is_missing(capsys):
    assert main(["ppo"]) == 2
    assert "model_name_or_path is missing" in capsys.readouterr().err


def test_ppo_trains_with_the_settings(trainer, capsys):
    assert main(["ppo", *RUNNABLE, "--lr", "1e-6"]) == 0
    assert trainer.args.learning_rate == 1e-6
    assert trainer.args.reward_model_path == "me/scorer"
    assert capsys.readouterr().err == "nearstep: reward_model is called reward_model_path here\n" + (
        "nearstep: lr is called learning_rate here\n"
        "nearstep: PPO of me/policy on me/prompts against me/scorer, into nearstep-output. Loading torch and "
        "transformers …\n"
    )


@pytest.mark.parametrize(
    ("words", "begins"),
    [
        (["ppo", *RUNNABLE], "PPO of me/policy on me/prompts against me/scorer"),
        slow((["reward", *RUNNABLE[:4]], "a reward model from me/policy, on me/prompts")),
        slow((["check", "mine.py:Region"], "the laws for mine.py:Region")),
        slow((["demo", "--quick"], "the demo, into runs/demo")),
    ],
)
def test_the_first_line_comes_before_anything_heavy_is_loaded(words, begins, tmp_path):
    """`import torch` alone takes seconds, so it must not come before the line."""
    code = (
        "import os, sys\nfrom nearstep.cli.main import main\n"
        "class Refuse:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name in ('torch', 'transformers', 'datasets', 'numpy'):\n"
        "            print('loading', name, file=sys.stderr, flush=True)\n"
        "            os._exit(7)\n"
        f"sys.meta_path.insert(0, Refuse())\nmain({words!r})\n"
    )
    (tmp_path / "mine.py").write_text("import torch\n")
    offline = {**os.environ, "https_proxy": "http://127.0.0.1:9"}  # nobody is asked whether the hub answers
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=offline)
    lines = [line for line in run.stderr.splitlines() if "is called" not in line]
    assert run.returncode == 7, run.stderr
    assert begins in lines[0]
    assert lines[-1].startswith("loading ")


def test_under_torchrun_one_process_speaks_for_all(trainer, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main(["ppo", *RUNNABLE]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (DataError("row 3 has no prompt"), 1, "nearstep: row 3 has no prompt\n"),
        (ConfigError("batch_size is too small"), 2, "nearstep: batch_size is too small\n"),
        (KeyboardInterrupt(), 130, "nearstep: interrupted\n"),
    ],
)
def test_exit_codes_of_a_failed_run(trainer, failure, code, words, capsys):
    trainer.failure = failure
    assert main(["ppo", *RUNNABLE]) == code
    assert capsys.readouterr().err.endswith(words)


def test_an_error_of_ours_keeps_its_traceback(trainer):
    trainer.failure = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["ppo", *RUNNABLE])


def test_demo_passes_its_options_on(monkeypatch):
    given = {}
    package, module = ModuleType("nearstep.demo"), ModuleType("nearstep.demo.run")
    module.run_demo = lambda **options: given.update(options)
    package.run = module
    monkeypatch.setitem(sys.modules, "nearstep.demo", package)
    monkeypatch.setitem(sys.modules, "nearstep.demo.run", module)
    assert main(["demo", "--output", "there", "--seed", "7", "--quick"]) == 0
    assert given == {"output": Path("there"), "seed": 7, "quick": True}


LACKING = {
    "model_name_or_path is missing: the policy to train": ("--model_name_or_path", "none"),
    "dataset_name is missing: the prompts": ("--dataset_name", "none"),
    "no reward: give reward_model_path, or reward_funcs": ("--reward_model", "none"),
    "model_name_or_path = ./policy: no such file or folder": ("--model_name_or_path", "./policy"),
    "model_name_or_path = runs/demo/policy: no such": ("--model_name_or_path", "runs/demo/policy"),
    "model_name_or_path = ~/none/such: no such file".replace("~", str(Path.home())): (
        "--model_name_or_path",
        "~/none/such",
    ),
    "sft_model_path = /none/such: no such file or folder": ("--sft_model_path", "/none/such"),
    "ref_model_path = ../ref: no such file or folder": ("--ref_model_path", "../ref"),
    "value_model_path = ./value: no such file or folder": ("--value_model_path", "./value"),
    "reward_model_path = ./scorer: no such file or folder": ("--reward_model", "./scorer"),
    "dataset_name = prompts.jsonl: no such file or folder": ("--dataset_name", "prompts.jsonl"),
    "dataset_name = ./her: no such file or folder; did you mean here?": ("--dataset_name", "./her"),
    "eval_dataset_name = held/out.parquet: no such": ("--eval_dataset_name", "held/out.parquet"),
    "reward_funcs = score.py:f: no such file or folder score.py": ("--reward_funcs", "score.py:f"),
    "eval_reward_funcs = score.py:f: no such file or folder score.py": ("--eval_reward_funcs", "score.py:f"),
    "eval_reward_model_path = ./judge: no such file or folder": ("--eval_reward_model_path", "./judge"),
    "output_dir = taken is a file; give a folder": ("--output_dir", "taken"),
    "reward_weights has 2 weights for 1 reward(s)": ("--reward_weights", "1", "2"),
    "eval_steps needs eval_dataset_name, dataset_test_split or num_eval_rows": ("--eval_steps", "5"),
}


@pytest.mark.parametrize(("words", "flags"), LACKING.items())
def test_what_a_run_lacks_is_told_before_it_starts(words, flags, trainer, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    Path("here").mkdir()
    assert main(["ppo", *RUNNABLE, *flags]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("nearstep: 1 problem in the settings:\n")
    assert words in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "taken"]  # nothing is left behind


def test_a_hub_name_beside_a_folder_of_its_owners_name_is_a_hub_name(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("me").mkdir()
    assert main(["ppo", *RUNNABLE]) == 0
    assert trainer.args.model_name_or_path == "me/policy"


def test_home_is_meant_by_a_tilde_wherever_a_place_is_given(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    (tmp_path / "policy").mkdir()
    (tmp_path / "prompts.jsonl").touch()
    (tmp_path / "mine.py").touch()
    (tmp_path / "run.yaml").write_text(
        "reward_funcs: ['~/mine.py:f', 'length:minimum_words=5']\noutput_dir: $HOME/out\n"
    )
    words = "ppo --config ~/run.yaml --model_name_or_path ~/policy --dataset_name ~/prompts.jsonl --stop_token ~"
    assert main([*words.split(), "--trust_region=~/mine.py:Region", "--ref_model_path", "${HOME}/policy"]) == 0
    given = trainer.args
    assert given.model_name_or_path == given.ref_model_path == f"{tmp_path}/policy"
    assert given.dataset_name == (f"{tmp_path}/prompts.jsonl",)
    assert given.reward_funcs == (f"{tmp_path}/mine.py:f", "length:minimum_words=5")
    assert given.trust_region == f"{tmp_path}/mine.py:Region"
    assert given.output_dir == f"{tmp_path}/out"
    assert given.stop_token == "~"  # a text, and no place


def test_what_is_there_is_accepted(trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("policy").mkdir()
    Path("prompts.jsonl").touch()
    Path("score.py").touch()
    words = "ppo --sft_model_path ./policy --dataset_name prompts.jsonl --reward_funcs score.py:f me/scorer"
    assert main(words.split()) == 0
    assert trainer.args.reward_funcs == ("score.py:f", "me/scorer")


def test_a_wrong_configuration_ends_before_torch_is_loaded():
    code = (
        "import sys; from nearstep.cli.main import main; code = main(sys.argv[1:]); print('torch' in sys.modules, code)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, "ppo", "--kl_coeff", "1"], capture_output=True, text=True, check=True
    )
    assert run.stdout == "False 2\n"
    assert "unknown setting kl_coeff; did you mean kl_coef?" in run.stderr
    assert "Traceback" not in run.stderr


def test_it_runs_as_a_module():
    run = subprocess.run([sys.executable, "-m", "nearstep", "ppo", "--sead", "1"], capture_output=True, text=True)
    assert run.returncode == 2
    assert "unknown setting sead; did you mean seed?" in run.stderr


def unread(*words, buffered, stderr=subprocess.PIPE):
    """A command whose output goes into a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys; from nearstep.cli.main import main; sys.exit(main(sys.argv[1:]))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = [] if buffered else ["-u"]
    run = subprocess.run(
        [sys.executable, *options, "-c", code, *words],
        stdout=writing, stderr=writing if stderr is None else stderr, text=True, env=environment,
    )  # fmt: skip
    os.close(writing)
    return run


@pytest.mark.parametrize("words", ["--help", slow("--version"), slow("reward --help"), "rewards"])
@pytest.mark.parametrize("buffered", [True, slow(False)])
def test_output_that_nobody_reads_is_no_error_of_ours(words, buffered):
    run = unread(*words.split(), buffered=buffered)
    assert (run.returncode, run.stderr) == (1, "")


def test_nor_is_an_error_message_that_nobody_reads():
    assert unread("ppo", "--sead", "1", buffered=True, stderr=None).returncode == 1


def test_another_broken_pipe_keeps_its_traceback(trainer):
    trainer.failure = BrokenPipeError("of a server")
    with pytest.raises(BrokenPipeError, match="of a server"):
        main(["ppo", *RUNNABLE])


def test_a_closed_standard_output_is_no_error():
    run = subprocess.run(["sh", "-c", f"{sys.executable} -m nearstep --version >&-"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
