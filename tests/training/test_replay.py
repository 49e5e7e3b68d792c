"""A run trained from written rollouts is the run that wrote them, without generating or scoring anything."""

import re
import shutil

import pytest

from nearstep import ConfigError, DataError
from nearstep.training.rollout_origin import RolloutOrigin, updates_of
from tests.checkpoint.saved_runs import assert_same_bits, everything, trainer_of
from tests.lanes import slow


def forbidden(*given, **named):
    """What nobody may call."""
    raise AssertionError("a replay generates and scores nothing, and a refusal loads nothing")


@pytest.mark.parametrize(
    "changed",
    [
        slow({}),
        {"trust_region": "topk_kl", "divergence_top_k": 3, "critic": "decoupled"},
        slow({
            "num_generations": 2, "advantage": "group_mean", "gate": "score_range", "gate_low": 0.2,
            "gate_fill": "refill", "refill_rounds": 2, "total_episodes": 16,
        }),
        slow({"do_sample": False, "max_length": 8, "total_episodes": 16}),
    ],
    ids=["clip", "top_k", "refill", "greedy_and_short"],
)  # fmt: skip
def test_a_replay_ends_with_the_same_bits(tmp_path, changed):
    first = trainer_of(tmp_path / "first", save_steps=None, dump_rollouts=str(tmp_path / "rollouts"), **changed)
    first.train()
    again = trainer_of(tmp_path / "again", save_steps=None, replay_rollouts=str(tmp_path / "rollouts"), **changed)
    again.recipe.engine.engine.generate = forbidden
    again.train()
    assert_same_bits(everything(again), everything(first))
    assert again.state.episodes == first.state.episodes
    assert (again.state.episodes > 8 * again.state.update) == ("gate" in changed)


@pytest.fixture(scope="module")
def dumped(tmp_path_factory):
    """The rollouts of two updates, and the settings that they were sampled with."""
    folder = tmp_path_factory.mktemp("dumped")
    shared = {"save_steps": None, "num_sample_generations": 0, "total_episodes": 16}
    trainer_of(folder / "first", dump_rollouts=str(folder / "rollouts"), **shared).train()
    return str(folder / "rollouts"), shared


@pytest.mark.parametrize(("changed", "said"), [
    ({"seed": 7}, "sampled otherwise than this run would:\n  seed: 42 → 7\nGive this run the same"),
    ({"batch_size": 4}, "  batch_size: 8 → 4\n"),
    ({"temperature": 0.5, "response_length": 3}, "  response_length: 6 → 3\n  temperature: 1.0 → 0.5\n"),
    ({"num_generations": 2}, "  num_generations: 1 → 2"),
    ({"sampler": "in_order"}, "  sampler: 'auto' → 'in_order'\nGive"),
    ({"gate": "mean_score", "gate_low": 0.1, "gate_fill": "refill"}, 
     "  this run refills (gate_fill = 'refill', gate = 'mean_score', gate_low = 0.1, gate_share = "),
    ({"trust_region": "topk_tv", "divergence_top_k": 3}, "trust_region compares: 0 are written → 3"),
    ({"given": {"train_dataset": [{"prompt": text} for text in "abcdefgh"]}}, "  the prompts or their columns"),
])  # fmt: skip
def test_rollouts_that_were_sampled_otherwise_are_refused_before_any_model_is_loaded(
    tmp_path, dumped, monkeypatch, changed, said
):
    folder, shared = dumped
    monkeypatch.setattr("nearstep.assembly.run.build_models", forbidden)
    with pytest.raises(ConfigError, match=re.escape(said)):
        trainer_of(tmp_path, replay_rollouts=folder, **{**shared, **changed})


def test_too_few_rollouts_are_noticed_at_the_start(tmp_path, dumped, monkeypatch):
    folder, shared = dumped
    monkeypatch.setattr("nearstep.assembly.run.build_models", forbidden)
    said = r"the rollouts of 2 updates, and this run needs those of updates 1 to 4: 3 to 4 are not .*episodes 16,"
    with pytest.raises(DataError, match=said):
        trainer_of(tmp_path, replay_rollouts=folder, **{**shared, "total_episodes": 32})
    with pytest.raises(DataError, match=r"has no rollouts\.json: it is no folder that dump_rollouts has written"):
        trainer_of(tmp_path, replay_rollouts=str(tmp_path), **shared)


@pytest.mark.parametrize(("name", "content"), [
    ("update-000002.rank-0.safetensors", b"x"), ("update-000002.rank-0.json", b"{"), ("rollouts.json", b"[]"),
])  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, dumped, name, content):
    folder, shared = dumped
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"replay_rollouts: .*{re.escape(name)} cannot be read"):
        trainer_of(tmp_path / "run", replay_rollouts=str(copy), **shared).train()


def test_rollouts_of_another_run_are_not_written_over(tmp_path, dumped, monkeypatch):
    folder, shared = dumped
    monkeypatch.setattr("nearstep.assembly.run.build_models", forbidden)
    for changed in ({}, {"resume": "auto", "seed": 7}):
        with pytest.raises(ConfigError, match=r"dump_rollouts: .* holds rollouts of another run"):
            trainer_of(tmp_path, dump_rollouts=folder, **shared, **changed)


@pytest.mark.slow
def test_a_run_that_goes_on_adds_to_its_rollouts(tmp_path):
    shared = {"num_sample_generations": 0, "dump_rollouts": str(tmp_path / "rollouts")}
    trainer_of(tmp_path / "run", total_episodes=8, **shared).train()
    trainer_of(tmp_path / "run", total_episodes=24, resume="auto", **shared).train()
    assert updates_of(tmp_path / "rollouts", 0) == {1, 2, 3}


def test_rollouts_may_be_trained_from_again_behind_a_gate_that_samples_nothing(tmp_path, dumped):
    folder, shared = dumped
    trainer = trainer_of(
        tmp_path, replay_rollouts=folder, gate="value_gap", gate_share=0.5, gate_fill="replace", **shared
    )
    trainer.recipe.engine.engine.generate = forbidden
    assert trainer.train().updates == 2
    assert trainer.history()[0]["gate/empty"] == 0.5


def test_a_folder_from_before_samplers_and_refills_was_sampled_without():
    older = RolloutOrigin(1, 8, "", 0, {"seed": 42})
    plain, chosen = {"seed": 42, "sampler": "auto", "gate_fill": None}, {"sampler": "difficulty", "gate_fill": "refill"}
    assert [*older.differences(RolloutOrigin(1, 8, "", 0, plain))] == []
    assert [*older.differences(RolloutOrigin(1, 8, "", 0, plain | chosen))] == [
        "this run refills (gate_fill = 'refill'), and these rollouts have no further rounds to take from",
        "sampler: 'auto' → 'difficulty'",
    ]


def test_rollouts_that_were_refilled_say_for_which_gate():
    refilled = {"gate_fill": "refill", "gate": "score_range", "gate_low": 0.1, "refill_rounds": 2}
    without = dict.fromkeys(refilled)  # whatever gate that run has, its rows are those of the first round
    there, named = RolloutOrigin(1, 8, "", 0, refilled), {"sampler": "auto"}
    assert [*there.differences(RolloutOrigin(1, 8, "", 0, without | named))] == [
        "these rollouts were refilled (gate_fill = 'refill', gate = 'score_range', gate_low = 0.1, refill_rounds = 2): "
        "which prompts came in further rounds depends on that gate, and this run does not refill"
    ]
    other = [*there.differences(RolloutOrigin(1, 8, "", 0, refilled | {"gate_low": 0.2} | named))]
    assert other == ["gate_low: 0.1 → 0.2"]
