"""Functions named as file.py:name: what is found, and what is said where it is not."""

import pickle

import pytest

from nearstep.common.errors import RewardError
from nearstep.rewards.functions import FunctionReward
from nearstep.rewards.loading import load_function

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass

def length_reward(completions, **kwargs):
    return [float(len(text)) for text in completions]

@dataclass
class Brevity:
    limit: int = 3

    def __call__(self, completions):
        return [float(len(text) <= self.limit) for text in completions]

class NeedsMore:
    def __init__(self, what):
        self.what = what

class NotCalled:
    pass

ready = Brevity(1)
limit = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my rewards.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize(("name", "expected"), [("length_reward", [2.0]), ("Brevity", [1.0]), ("ready", [0.0])])
def test_functions_objects_and_classes_are_found(file, name, expected):
    assert load_function(f"{file}:{name}")(completions=["ab"]) == expected


def test_the_name_is_kept_for_the_reports(file):
    assert FunctionReward(load_function(f"{file}:length_reward")).name == "length_reward"
    assert FunctionReward(load_function(f"{file}:Brevity")).name == "Brevity"


def test_two_functions_of_a_file_come_from_one_run_of_it_and_can_be_pickled(file):
    brevity, ready = load_function(f"{file}:Brevity"), load_function(f"{file}:ready")
    assert type(brevity) is type(ready)
    assert pickle.loads(pickle.dumps(ready)) == ready
    function = load_function(f"{file}:length_reward")
    assert pickle.loads(pickle.dumps(function)) is function


def test_an_edited_file_is_read_anew(file):
    load_function(f"{file}:length_reward")
    file.write_text("def length_reward(completions):\n    return [9.0]\n")
    assert load_function(f"{file}:length_reward")(completions=["ab"]) == [9.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenght_reward", r"defines no 'lenght_reward'\. Did you mean length_reward\?"),
        ("zzz", r"defines no 'zzz'\. Did you mean Brevity, "),
        ("limit", "is 3, which cannot be called"),
        ("NotCalled", "which cannot be called"),
        ("NeedsMore", "could not be made without arguments .*'what'"),
    ],
)
def test_a_name_that_is_no_function_is_refused(file, name, message):
    with pytest.raises(RewardError, match=message):
        load_function(f"{file}:{name}")


@pytest.mark.parametrize("spec", ["rewards.py", "rewards.py:", ":name", ""])
def test_a_spec_without_both_halves_says_how_to_write_it(spec):
    with pytest.raises(RewardError, match=r"write it as path/to/file.py:name"):
        load_function(spec)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RewardError, match=r"there is no file .*absent.py"):
        load_function(f"{tmp_path}/absent.py:reward")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "reward.txt").write_text("x")
    with pytest.raises(RewardError, match="no Python file"):
        load_function(f"{tmp_path}/reward.txt:reward")


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_module_anywhere", ModuleNotFoundError),
        ("def f(:", SyntaxError),
        ("raise SystemExit(3)", SystemExit),
    ],
)
def test_a_file_that_fails_is_reported_with_its_cause_and_read_again_next_time(tmp_path, source, cause):
    file = tmp_path / "failing.py"
    file.write_text(source)
    for _ in range(2):
        with pytest.raises(RewardError, match=r"failing.py failed while loading: " + cause.__name__) as raised:
            load_function(f"{file}:f")
        assert isinstance(raised.value.__cause__, cause)
