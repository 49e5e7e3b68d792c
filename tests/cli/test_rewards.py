"""`nearstep rewards`: the list, one reward in full, and what is said of names that are none."""

import subprocess
import sys

import pytest

from nearstep.cli.main import main


def test_the_list(capsys):
    assert main(["rewards"]) == 0
    out = capsys.readouterr().out
    assert "\n  length_target             0 to 1   1 at the wanted number of words" in out
    assert "\nMathematics\n" in out


@pytest.mark.parametrize("words", [["length_target", "tags"], ["--names", "length_target", "tags"]])
def test_some_in_full(words, capsys):
    assert main(["rewards", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("length_target\n  1 at the wanted number of words")
    assert "\n    words=120" in out
    assert "\ntags\n" in out


def test_a_name_that_is_none(capsys):
    assert main(["rewards", "lenght"]) == 2
    assert "did you mean length" in capsys.readouterr().err
    assert main(["rewards", "medical_accuracy"]) == 2
    assert "terms and disclaimers are not accuracy" in capsys.readouterr().err


def test_the_help_of_ppo_names_them(capsys):
    assert main(["ppo", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "Built-in rewards: length, length_target," in out
    assert "nearstep rewards NAME shows one in full" in out
    assert main(["rewards", "--help"]) == 0
    assert "usage: nearstep rewards NAMES " in capsys.readouterr().out


def test_listing_needs_the_standard_library_only():
    code = (
        "import sys; before = set(sys.modules)\n"
        "from nearstep.cli.main import main; main(['rewards']); main(['rewards', 'bertscore'])\n"
        "print({name.split('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "{'nearstep'}"


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (
            "lenght_target:words=3",
            "reward_funcs: 'lenght_target' is no built-in reward and no folder; did you mean length_target",
        ),
        ("length_target:words=-3", "reward_funcs: length_target: words = '-3' must be at least 1"),
        ("sentiment", "reward_funcs: sentiment needs model: write sentiment:model=…"),
        ("harmlessness", "reward_funcs: 'harmlessness' is no built-in reward: use safety"),
    ],
)
def test_wrong_rewards_are_told_with_all_other_problems(entry, complaint, capsys, tmp_path):
    assert main(["ppo", "--reward_funcs", entry, "--dataset_name", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert complaint in err
    assert "model_name_or_path is missing" in err
