"""Settings of different axes at once, where each has been thought of alone: what one counts, another counts too."""

from dataclasses import replace

import pytest
import torch
from examples.several_turns import TwoSegments

from nearstep import ConfigError
from nearstep.training.experience import make_experience
from nearstep.training.frozen_passes import PassLimits, logprobs_under
from nearstep.training.pretraining import EXPLAINED, pretrain_critic
from nearstep.training.reweighting import reweighted
from nearstep.training.schedules import RatioBand
from nearstep.training.state import State
from nearstep.types import Scores
from tests.checkpoint.saved_runs import trainer_of
from tests.tiny import tiny_causal_lm, tiny_scalar_model
from tests.training.runs import play, settings, small_recipe


def test_a_warm_up_of_episodes_of_several_rows_ends_by_what_is_explained_of_the_scored_ones(tmp_path):
    parts = {"engine": TwoSegments, "value_model": tiny_scalar_model()}
    recipe = small_recipe(tmp_path, parts=parts, vf_warmup_updates=2, vf_warmup_until=0.5)
    _, rollout, scores = play(recipe)
    state = State(update=1)
    rows = make_experience(rollout, scores, recipe, state)
    first = rollout.action_counts[:2].sum()  # of the first episode, whose values are far off and whose score failed
    values = rows.returns.clone()
    values[:first] += torch.linspace(-90, 90, int(first))
    state.watch_critic(replace(rows, values=values), scores, recipe.config, recipe.backend)
    assert not state.critic_is_ready
    failed = Scores(scores.total.index_fill(0, torch.tensor([0]), torch.nan))
    state.watch_critic(replace(rows, values=values), failed, recipe.config, recipe.backend)
    assert state.critic_is_ready


def test_a_warm_up_ends_by_what_the_values_of_all_processes_explain(tmp_path, monkeypatch):
    """The values of this process are right, those of the other are far off."""
    recipe = small_recipe(tmp_path, vf_warmup_updates=2, vf_warmup_until=0.5)
    _, rollout, scores = play(recipe)
    state = State(update=1)
    rows = make_experience(rollout, scores, recipe, state)
    right = replace(rows, values=rows.returns)
    off = replace(rows, values=rows.returns + torch.linspace(-90, 90, len(rows.returns)))
    said = []
    monkeypatch.setattr(type(recipe.backend), "gather", lambda _, own: said.append(own) or [*said])
    for experience in (off, right):
        state.watch_critic(experience, scores, recipe.config, recipe.backend)
        assert not state.critic_is_ready
    said.clear()
    state.watch_critic(right, scores, recipe.config, recipe.backend)
    assert state.critic_is_ready


def test_moments_of_parts_are_those_of_all_processes_also_of_one_that_has_no_row_of_a_round(tmp_path, monkeypatch):
    """Every process must ask for the same sums: one that did not would leave the others waiting."""
    recipe = small_recipe(tmp_path, normalize_scores="scale", normalize_scores_apart=True)
    scores = Scores(torch.tensor([1.0, 5.0]), {"one": torch.tensor([1.0, 2.0]), "two": torch.tensor([0.0, 3.0])})
    asked: dict[str, list] = {"here": [], "there": []}
    found = {}
    for name, own in (("here", scores), ("there", Scores(torch.zeros(0)))):
        monkeypatch.setattr(type(recipe.backend), "gather", lambda _, own: [["two", "one"], []])
        monkeypatch.setattr(
            type(recipe.backend), "add_up", lambda _, own, name=name: asked[name].append(own.shape) or 2 * own
        )
        found[name] = State()
        found[name].update_score_moments(own, recipe.config, recipe.backend)
    assert asked["here"] == asked["there"]
    assert {name: moments.count for name, moments in found["here"].part_moments.items()} == {"one": 4, "two": 4}
    assert list(found["there"].part_moments) == ["one", "two"]


@pytest.mark.parametrize("given", [{"whiten_advantages": False}, {"whiten_rewards": True}])
def test_what_a_gate_drops_counts_in_no_mean(tmp_path, given):
    """The mean that takes the place of values, and the variance of rewards, are those of the rows that train."""
    recipe = small_recipe(tmp_path, baseline_fallback="batch_mean", kl_coef=0.0, **given)
    _, rollout, scores = play(recipe)
    kept = torch.arange(8) < 6
    other = Scores(torch.where(kept, scores.total, 900.0))
    found, far = (
        make_experience(rollout, each, recipe, State(update=1), kept=kept).advantages[kept[_rows(rollout)]]
        for each in (scores, other)
    )
    assert torch.equal(found, far)
    returns = scores.total[kept].repeat_interleave(rollout.action_counts[kept])
    if "whiten_rewards" not in given:
        torch.testing.assert_close(found, returns - returns.mean())


def _rows(rollout):
    return torch.arange(8).repeat_interleave(rollout.action_counts)


@pytest.mark.slow
def test_a_critic_is_pretrained_beside_auxiliary_losses_that_read_parts_of_the_reward(tmp_path):
    folder = str(tmp_path / "rollouts")
    given = {"save_steps": None, "total_episodes": 16, "dump_rollouts": folder}
    trainer_of(tmp_path / "run", model=tiny_causal_lm(layers=1), **given).train()
    recipe = small_recipe(tmp_path / "b", vf_pretrain_rollouts=folder, nll_coef=0.1, nll_reward="low_ids")
    assert EXPLAINED in pretrain_critic(recipe, State()).numbers()
    with pytest.raises(ConfigError, match="normalize_scores_apart scales every reward by itself, and vf_pretrain_roll"):
        settings(tmp_path, vf_pretrain_rollouts=folder, normalize_scores="scale", normalize_scores_apart=True)


def test_states_are_reweighted_against_an_interpolated_anchor_where_it_stands(tmp_path):
    """log π_prox = log μ + a · (log π − log μ), so π/π_prox = (π/μ)^(1 − a)."""
    recipe = small_recipe(tmp_path, dtype=torch.float64, critic="decoupled", vf_reweight="ratio", anchor="interpolated")
    _, rollout, scores = play(recipe)
    rows = make_experience(replace(rollout, policy_version=torch.tensor([3] * 4 + [2] * 4)), scores, recipe, State(3))
    now = logprobs_under(recipe.models.policy, rollout, recipe.sampling, PassLimits.of(recipe))
    ratio = torch.full_like(now, 4.0)
    found, _ = reweighted(replace(rows, old_logprobs=now - ratio.log()), RatioBand(), recipe)
    expected = torch.where(_rows(rollout) < 4, 4.0, 2.0).double()
    torch.testing.assert_close(found.value_weights, expected, atol=1e-6, rtol=0)


def test_rows_of_an_episode_have_the_numbers_of_their_prompt_and_their_response(tmp_path):
    """Two responses to each of four prompts, each of two rows: what an ensemble and minibatches go by."""
    recipe = small_recipe(tmp_path, parts={"engine": TwoSegments}, num_generations=2)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    assert rows.sample_numbers.tolist() == [0, 0, 1, 1] * 4
    assert rows.prompt_numbers.tolist() == [number for number in range(4) for _ in range(4)]
