"""The examples of docs/extending.md are run: each file passes its suite and takes part in a training."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from nearstep.cli.main import main
from nearstep.common.errors import RewardError
from nearstep.common.plugins import load_named
from nearstep.testing import backends, engines, rewards, schedules, trust_regions
from nearstep.training.loop import train
from nearstep.training.state import State
from tests.training.runs import small_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Every Python block that opens with its file's name."""
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(# (\w+\.py)\n.*?)```", PAGE, flags=re.S):
        Path(block[1]).write_text(block[0], encoding="utf-8")
    samples = [{"prompt": "2 + 2?", "completion": "It is 4.", "answer": "4"}]
    Path("samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    return sorted(path.name for path in tmp_path.glob("my_*.py"))


def test_the_page_has_a_file_for_every_axis(files):
    assert files == ["my_engine.py", "my_region.py", "my_reward.py", "my_schedule.py"]


@pytest.mark.parametrize(
    "words",
    [
        ["my_region.py:MyRegion"],
        ["my_reward.py:right_answer", "--rows", "samples.jsonl"],
        ["my_schedule.py:CriticTwice"],
        ["my_engine.py:PlainGenerate"],
    ],
    ids=lambda words: words[0],
)
def test_every_file_keeps_the_laws(words, files):
    assert main(["check", *words]) == 0


def found(spec):
    return load_named(spec, kind="object", error=RewardError)


def test_they_train_together(files, tmp_path):
    region, engine, schedule = (
        found("my_region.py:MyRegion"), found("my_engine.py:PlainGenerate"), found("my_schedule.py:CriticTwice")
    )  # fmt: skip
    recipe = small_recipe(tmp_path / "out", total_episodes=8, parts={"engine": engine})
    assert type(recipe.engine) is engine
    recipe = replace(recipe, trust_region=region(), schedule=schedule())
    state = State()
    with recipe.report.reporter as reporter:
        reporter.begin(recipe.batch.table(), recipe.introduction)
        train(recipe, state)
        reporter.end()
    assert (state.steps.policy, state.steps.critic) == (4, 2)


@pytest.mark.parametrize("suite", [trust_regions, rewards, schedules, engines])
def test_every_law_is_on_the_page_with_its_weight(suite):
    for law in suite.LAWS:
        (line,) = [line for line in _section(suite).splitlines() if line.startswith("| `") and f"`{law.name}`" in line]
        assert ("(not universal)" in line) != law.universal


def _section(suite) -> str:
    titles = {trust_regions: "A trust region", rewards: "A reward", schedules: "A schedule", engines: "An engine"}
    return PAGE.split(f"## {titles[suite]}")[1].split("\n## ")[0]


def test_backends_have_universal_laws_only():
    assert all(law.universal for law in backends.LAWS)
