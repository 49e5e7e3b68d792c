"""The examples of docs/extending.md are run: each file passes its suite and takes part in a training."""

import json
import re
from pathlib import Path

import pytest
import torch

from nearstep.cli.main import main
from nearstep.common.errors import RewardError
from nearstep.common.plugins import load_named
from nearstep.testing import (
    advantages,
    aggregations,
    auxiliary_losses,
    backends,
    corrections,
    engines,
    gates,
    kl_controllers,
    rewards,
    samplers,
    schedules,
    trust_regions,
    value_heads,
)
from nearstep.training.experience import make_experience
from nearstep.training.gates import FinishedGroups
from nearstep.training.loop import train
from nearstep.training.state import State
from nearstep.types import Scores
from tests.lanes import slow
from tests.training.runs import play, small_recipe

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
    assert files == [
        "my_advantage.py", "my_aggregation.py", "my_controller.py", "my_correction.py", "my_engine.py",
        "my_gate.py", "my_head.py", "my_loss.py", "my_region.py", "my_reward.py", "my_sampler.py", "my_schedule.py",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["my_region.py:MyRegion"],
        ["my_reward.py:right_answer", "--rows", "samples.jsonl"],
        ["my_schedule.py:CriticTwice"],
        ["my_advantage.py:BestOfOthers"],
        ["my_controller.py:Corridor"],
        ["my_aggregation.py:RootLength"],
        slow(["my_head.py:TwoHot"]),
        ["my_correction.py:DampedRows"],
        ["my_loss.py:RememberSuccess"],
        slow(["my_engine.py:PlainGenerate"]),
        ["my_sampler.py:LongUnseen"],
        ["my_gate.py:SomeEnded"],
    ],
    ids=lambda words: words[0],
)
def test_every_file_keeps_the_laws(words, files):
    assert main(["check", *words]) == 0


def found(spec):
    return load_named(spec, kind="object", error=RewardError)


NAMED = {
    "trust_region": "my_region.py:MyRegion", "kl_controller": "my_controller.py:Corridor",
    "critic_schedule": "my_schedule.py:CriticTwice", "loss_aggregation": "my_aggregation.py:RootLength",
    "correction": "my_correction.py:DampedRows",
    "sampler": "my_sampler.py:LongUnseen",
}  # fmt: skip


def test_they_train_together_by_name_and_as_objects(files, tmp_path):
    by_name = small_recipe(tmp_path / "a", total_episodes=8, anchor="recomputed", **NAMED)
    engine = found("my_engine.py:PlainGenerate")
    objects = {"engine": engine} | {setting: found(spec)() for setting, spec in NAMED.items()}
    recipe = small_recipe(tmp_path / "b", total_episodes=8, anchor="recomputed", parts=objects)
    for name in ("trust_region", "kl_controller", "schedule", "loss_aggregation", "correction"):
        assert vars(recipe)[name] == vars(by_name)[name]
    assert recipe.selection.sampler == by_name.selection.sampler
    assert "kl_controller is an object of your own: Corridor." in recipe.introduction
    assert type(recipe.engine) is engine
    state = State()
    with recipe.report.reporter as reporter:
        reporter.begin(recipe.batch.table(), recipe.introduction)
        train(recipe, state)
        reporter.end()
    assert (state.steps.policy, state.steps.critic) == (4, 2)
    assert state.kl_coef == 0.025  # the first update's KL is below the corridor


def test_the_head_takes_part_in_a_training(files, tmp_path):
    recipe = small_recipe(tmp_path / "run", total_episodes=8, kl_coef=0.0, value_head="my_head.py:TwoHot")
    assert recipe.models.critic.head.out_features == 31
    with recipe.report.reporter:
        train(recipe, State())
    assert recipe.models.critic.head.weight.abs().max() > 0


def test_the_gate_by_hand_over_both_ways(files, tmp_path):
    named = {"num_generations": 2, "gate_fill": "refill"}
    for recipe in (
        small_recipe(tmp_path / "a", gate="my_gate.py:SomeEnded", **named),
        small_recipe(tmp_path / "b", parts={"gate": found("my_gate.py:SomeEnded")()}, **named),
    ):
        assert (type(recipe.selection.gate).__name__, recipe.selection.fill) == ("SomeEnded", "refill")
        scores = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0], [torch.nan, torch.nan], [torch.nan, 1.0]])
        ended = torch.tensor([[True, False], [True, True], [False, False], [True, True], [False, True]])
        groups = FinishedGroups(scores, scores, ended.long(), ended)
        assert recipe.selection.gate.keep(groups).tolist() == [True, False, False, False, True]


def test_the_advantage_by_hand_over_both_ways(files, tmp_path):
    named = {"num_generations": 4, "kl_coef": 0.0}
    recipes = [
        small_recipe(tmp_path / "a", advantage="my_advantage.py:BestOfOthers", **named),
        small_recipe(tmp_path / "b", parts={"advantage": found("my_advantage.py:BestOfOthers")()}, **named),
    ]
    for recipe in recipes:
        assert recipe.models.critic is None
        _, rollout, _ = play(recipe)
        totals = torch.tensor([1.0, 4.0, 2.0, torch.nan, 5.0, 5.0, 3.0, 0.0])
        experience = make_experience(rollout, Scores(totals), recipe)
        starts = rollout.action_counts.cumsum(0) - rollout.action_counts
        assert experience.advantages[starts].tolist() == [-3, 2, -2, 0, 0, 0, -2, -5]


@pytest.mark.parametrize(
    "suite",
    [
        trust_regions, advantages, kl_controllers, aggregations, auxiliary_losses, value_heads, corrections, samplers,
        gates, rewards, schedules, engines,
    ],
)  # fmt: skip
def test_every_law_is_on_the_page_with_its_weight(suite):
    for law in suite.LAWS:
        (line,) = [line for line in _section(suite).splitlines() if line.startswith("| `") and f"`{law.name}`" in line]
        assert ("(not universal)" in line) != law.universal


def _section(suite) -> str:
    titles = {
        trust_regions: "A trust region", advantages: "An advantage", kl_controllers: "A KL controller",
        aggregations: "A way to add up losses", auxiliary_losses: "An auxiliary loss", value_heads: "A value head",
        corrections: "A correction", samplers: "A sampler", gates: "A gate", rewards: "A reward",
        schedules: "A schedule", engines: "An engine",
    }  # fmt: skip
    return PAGE.split(f"## {titles[suite]}")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    "suite",
    [
        trust_regions, advantages, kl_controllers, aggregations, auxiliary_losses, value_heads, corrections, samplers,
        gates, rewards, schedules, engines, backends,
    ],
)  # fmt: skip
def test_laws_speak_of_scores_and_of_no_judging(suite):
    assert [law.statement for law in suite.LAWS if "judge" in law.statement] == []


def test_the_loss_of_the_page_trains_by_name_and_as_an_object(files, tmp_path):
    stops = {"stop_token_id": list(range(0, 258, 9)), "total_episodes": 8}
    named = small_recipe(tmp_path / "a", auxiliary_losses=["my_loss.py:RememberSuccess"], **stops)
    given = small_recipe(tmp_path / "b", parts={"auxiliary_losses": found("my_loss.py:RememberSuccess")}, **stops)
    assert named.auxiliary.losses == given.auxiliary.losses
    assert "Auxiliary losses of your own: ends." in named.introduction
    with named.report:
        train(named, State())
    (line,) = named.report.history
    assert line["auxiliary/ends"] > 0
    assert line["ends/largest"] >= line["auxiliary/ends"]


def test_backends_have_universal_laws_only():
    assert all(law.universal for law in backends.LAWS)
