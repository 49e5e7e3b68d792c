"""The examples of docs/judges.md are run, and every setting of judges stands in it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from nearstep.cli.main import main
from nearstep.config.judges import JudgeOptions
from nearstep.judges.prompt import load_prompt
from nearstep.rewards.builtin.spec import problems_of
from nearstep.rewards.judge_spec import judge_config

PAGE = (Path(__file__).parents[2] / "docs" / "judges.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, name in re.findall(r"```(?:python|yaml|toml)\n(# (\w+\.\w+)\n.*?)```", PAGE, flags=re.S):
        Path(name).write_text(text)
    for name, text in (("ppo", "Ann is 25."), ("sft", "Bob is 30.")):
        Path(f"{name}.jsonl").write_text(json.dumps({"prompt": "I am Ann, 25.", "completion": text}))


def test_the_judge_of_ones_own(capsys):
    assert main(["check", "my_judge.py:Facts"]) == 0
    assert "11 laws hold" in capsys.readouterr().out
    assert main(["judge", "ppo.jsonl", "sft.jsonl", "--judge", "my_judge.py:Facts"]) == 0
    assert capsys.readouterr().out.startswith("preferred\nresponse0    1\n")
    assert problems_of("judge:my_judge.py:Facts") == []


def test_the_files_are_read():
    assert judge_config("judge.yaml").max_cost == 20
    assert load_prompt("my_prompt.toml", rubric=None, lowest=1, highest=5).rubric == "Rhyme, then meaning."


def test_every_setting_of_judges_is_explained():
    names = {field.name for field in dataclasses.fields(JudgeOptions)}
    undocumented = names - set(re.findall(r"\w+", PAGE)) - {
        "bf16", "dtype", "files", "limit", "max_tokens_per_microbatch", "output", "references", "seed",
        "timeout_seconds", "trust_remote_code", "allow_pickled_weights", "use_cpu",
    }  # fmt: skip
    assert undocumented == set()
