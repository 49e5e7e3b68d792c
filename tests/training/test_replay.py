"""A run trained from written rollouts is the run that wrote them, without generating or scoring anything."""

import pytest

from nearstep import DataError
from tests.checkpoint.saved_runs import assert_same_bits, everything, trainer_of


def forbidden(completions, **columns):
    """A reward that nobody may ask."""
    raise AssertionError("a replay scores nothing")


@pytest.mark.parametrize(
    "changed", [{}, {"trust_region": "topk_kl", "divergence_top_k": 3, "critic": "decoupled"}], ids=["clip", "top_k"]
)
def test_a_replay_ends_with_the_same_bits(tmp_path, changed):
    first = trainer_of(tmp_path / "first", save_steps=None, dump_rollouts=str(tmp_path / "rollouts"), **changed)
    first.train()
    again = trainer_of(tmp_path / "again", save_steps=None, replay_rollouts=str(tmp_path / "rollouts"), **changed)
    again.recipe.engine.engine.generate = forbidden
    again.train()
    assert_same_bits(everything(again), everything(first))


def test_rollouts_of_other_prompts_are_refused(tmp_path):
    trainer_of(tmp_path / "first", save_steps=None, total_episodes=8, dump_rollouts=str(tmp_path / "rollouts")).train()
    other = trainer_of(tmp_path / "other", save_steps=None, seed=7, replay_rollouts=str(tmp_path / "rollouts"))
    with pytest.raises(Exception, match="prompt"):
        other.train()


def test_an_update_that_was_not_written_is_named(tmp_path):
    trainer_of(tmp_path / "first", save_steps=None, total_episodes=8, dump_rollouts=str(tmp_path / "rollouts")).train()
    longer = trainer_of(
        tmp_path / "longer", save_steps=None, total_episodes=16, replay_rollouts=str(tmp_path / "rollouts")
    )
    with pytest.raises(DataError, match=r"update-000002\.rank-0\.safetensors cannot be read"):
        longer.train()
