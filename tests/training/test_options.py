"""Options of the update, on tiny models: what each changes in an experience or in a gradient, worked out apart."""

import dataclasses
import json
import math

import pytest
import torch

from nearstep.algorithm.kl import kl_estimate
from nearstep.algorithm.statistics import Moments
from nearstep.config.recipes import RECIPES
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.experience import describe, make_experience
from nearstep.training.loop import train
from nearstep.training.objectives import PolicyTerms, policy_objective
from nearstep.training.state import State, Steps
from nearstep.training.update import update
from nearstep.types import Scores
from tests.lanes import slow
from tests.training.runs import learner, play, small_recipe


def recipe_of(folder, **changes):
    return small_recipe(folder, dtype=torch.float64, **changes)


def gradient(loss, model):
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
    )


def says_now(experience, recipe):
    entropy_gradient = recipe.config.entropy_coef != 0
    return rollout_logprobs(
        recipe.models.policy, experience.rollout, recipe.sampling, entropy_gradient=entropy_gradient
    )


def objective_gradient(recipe, experience):
    loss, _ = policy_objective(experience, says_now(experience, recipe), PolicyTerms.of(recipe), first=True)
    return gradient(loss, recipe.models.policy.model)


def assert_same_gradient(found, expected):
    """Up to the float32 in which the models normalise, whatever their own type."""
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def moved_experience(recipe):
    """An experience whose reference and anchor are not the policy itself, so that no term vanishes."""
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    shift = torch.linspace(-0.3, 0.3, len(rollout.logprobs), dtype=torch.float64)
    return dataclasses.replace(experience, ref_logprobs=rollout.logprobs + shift, old_logprobs=rollout.logprobs - shift)


@pytest.mark.parametrize("estimator", [slow("k2"), "k3"])
def test_kl_in_the_loss_adds_its_own_gradient_and_leaves_rewards_alone(tmp_path, estimator):
    changes = {"kl_coef": 0.5, "kl_in": "loss", "kl_estimator": estimator}
    recipe = recipe_of(tmp_path, **changes)
    experience = moved_experience(recipe)
    without = dataclasses.replace(experience, kl_coef=0.0)
    now = rollout_logprobs(recipe.models.policy, experience.rollout, recipe.sampling).sampled
    expected = gradient(0.5 * kl_estimate(now, experience.ref_logprobs, estimator).sum(), recipe.models.policy.model)
    found = objective_gradient(recipe, experience) - objective_gradient(recipe, without)
    assert_same_gradient(found, expected)
    assert expected.abs().max() > 1e-6

    _, rollout, scores = play(recipe)
    rollout = dataclasses.replace(rollout, logprobs=rollout.logprobs + 1)
    last = rollout.action_counts.cumsum(0) - 1
    rewards = make_experience(rollout, scores, recipe).rewards.clone()
    rewards[last] = 0
    assert not rewards.any()
    in_reward = recipe_of(tmp_path / "b", **{**changes, "kl_in": "reward"})
    assert make_experience(rollout, scores, in_reward).rewards.abs().min() > 0


@pytest.mark.parametrize("cuts", [slow({}), slow({"top_k": 5}), {"top_p": 0.9}])
def test_entropy_bonus_has_the_gradient_of_the_entropy(tmp_path, cuts):
    recipe = recipe_of(tmp_path, entropy_coef=0.3, **cuts)
    experience = moved_experience(recipe)
    plain = dataclasses.replace(recipe, config=dataclasses.replace(recipe.config, entropy_coef=0.0))
    entropy = rollout_logprobs(recipe.models.policy, experience.rollout, recipe.sampling, entropy_gradient=True).entropy
    expected = gradient(-0.3 * entropy.sum(), recipe.models.policy.model)
    found = objective_gradient(recipe, experience) - objective_gradient(plain, experience)
    assert_same_gradient(found, expected)
    assert expected.abs().max() > 1e-6
    assert expected.isfinite().all()


@pytest.mark.slow
def test_adaptive_kl_moves_the_coefficient_by_its_rule_and_it_reaches_rewards(tmp_path):
    recipe = recipe_of(tmp_path, kl_coef=0.2, kl_target=1e-3, kl_horizon=40, learning_rate=1e-2)
    state = State()
    train(recipe, state)
    # 24 episodes in three updates; the first has KL 0 and lowers, the others are far above and raise
    assert state.kl_coef == pytest.approx(0.2 * (1 - 0.2 * 8 / 40) * (1 + 0.2 * 8 / 40) ** 2)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe, state)
    assert experience.kl_coef == pytest.approx(state.kl_coef)
    shown = describe(experience, scores, recipe).numbers()
    assert shown["objective/kl_coef"] == pytest.approx(experience.kl_coef)
    assert shown["objective/non_score_reward"] == pytest.approx(-experience.kl_coef * shown["objective/kl"])


@pytest.mark.parametrize("rule", ["sequence_mean", *map(slow, ("sequence_sum", "sequence_sum_norm", "token_sum"))])
def test_aggregations_do_not_depend_on_micro_batches(tmp_path, rule):
    def weights(folder, **changes):
        recipe = recipe_of(
            folder, loss_aggregation=rule, optim="sgd", learning_rate=1e-2, max_grad_norm=None, kl_coef=0.0,
            total_episodes=8, **changes,
        )  # fmt: skip
        train(recipe, State())
        return torch.cat([parameter.detach().flatten() for parameter in recipe.models.policy.model.parameters()])

    whole, split = weights(tmp_path / "a"), weights(tmp_path / "b", max_tokens_per_microbatch=11)
    other = weights(tmp_path / "c", num_mini_batches=2)
    assert (whole - split).abs().max() < 1e-12
    assert (whole - other).abs().max() > 1e-9


def test_the_running_normalisation_uses_all_scores_so_far(tmp_path):
    recipe = recipe_of(tmp_path, normalize_scores="shift_and_scale")
    _, rollout, _ = play(recipe)
    first, second = torch.arange(8.0), torch.arange(8.0) * 3 - 40
    state = State()
    for totals in (first, second):
        state.update_score_moments(Scores(totals), recipe.config, recipe.backend)
    seen = torch.cat([first, second]).double()
    judged = make_experience(rollout, Scores(second), recipe, state).scores
    expected = (second.double() - seen.mean()) / seen.std(unbiased=False)
    torch.testing.assert_close(judged, expected, rtol=1e-6, atol=1e-6)
    alone = make_experience(rollout, Scores(second), recipe).scores
    assert alone.mean().abs() < 1e-6  # without a state the run begins here


def test_overlong_penalty_by_hand(tmp_path):
    recipe = recipe_of(tmp_path, overlong_buffer=4, overlong_penalty=2.0)
    _, rollout, _ = play(recipe)
    judged = make_experience(rollout, Scores(torch.zeros(8)), recipe).scores
    expected = [-2.0 * max(0, length - 2) / 4 for length in rollout.action_counts.tolist()]
    assert judged.tolist() == pytest.approx(expected)
    assert min(expected) < 0


def test_truncated_rows_and_rows_without_a_score_teach_nothing(tmp_path):
    recipe = recipe_of(tmp_path, mask_truncated_completions=True)
    _, rollout, _ = play(recipe)
    finished = torch.tensor([True, False] * 4)
    rollout = dataclasses.replace(rollout, finished=finished)
    totals = torch.tensor([math.nan, 1, 2, 3, 4, 5, 6, 7])
    experience = make_experience(rollout, Scores(totals), recipe)
    assert experience.trained.tolist() == [False, False, True, False, True, False, True, False]
    shown = describe(experience, Scores(totals), recipe).numbers()
    assert shown["objective/scores"] == pytest.approx(4)
    assert shown["response/left_out"] == pytest.approx(5 / 8)
    metrics, steps = update(experience, recipe.schedule.phases(1), recipe)
    trained = int(rollout.action_counts[experience.trained].sum())
    assert float(metrics.by_name["val/ratio"].count) == 2 * trained  # two epochs
    assert steps == Steps(policy=2, critic=2)


def test_an_update_without_a_row_to_learn_from_takes_no_step(tmp_path):
    recipe = recipe_of(tmp_path)
    _, rollout, _ = play(recipe)
    experience = make_experience(rollout, Scores(torch.full((8,), math.nan)), recipe)
    _, steps = update(experience, recipe.schedule.phases(1), recipe)
    assert steps == Steps()


def test_scores_of_rows_left_out_do_not_reach_the_advantages_of_others(tmp_path):
    recipe = recipe_of(tmp_path, kl_coef=0.0)
    _, rollout, _ = play(recipe)
    totals = torch.tensor([math.nan, 1, 2, 3, 4, 5, 6, 7])
    kept = torch.arange(1, 8)
    mixed = make_experience(rollout, Scores(totals), recipe).select(kept)
    apart = make_experience(rollout.select(kept), Scores(totals[1:]), recipe)
    torch.testing.assert_close(mixed.advantages, apart.advantages)


def test_dense_rewards_are_paid_where_they_belong(tmp_path):
    recipe = recipe_of(tmp_path, kl_coef=0.0, lam=1.0, whiten_advantages=False)
    _, rollout, _ = play(recipe)
    dense = torch.arange(float(len(rollout.logprobs)))
    scores = Scores(torch.ones(8), dense=dense)
    experience = make_experience(rollout, scores, recipe)
    expected = dense.double()
    expected[rollout.action_counts.cumsum(0) - 1] += 1
    torch.testing.assert_close(experience.rewards, expected)
    shown = describe(experience, scores, recipe).numbers()
    assert shown["objective/scores"] == pytest.approx(1 + float(dense.sum()) / 8)
    assert shown["objective/scores_raw"] == shown["objective/scores"]


def test_early_stop_ends_the_epochs_and_counts_the_steps_that_were_taken(tmp_path):
    taken = {}
    for limit in (None, 1e-9, 1e9):
        recipe = recipe_of(tmp_path / str(limit), num_ppo_epochs=4, num_mini_batches=2, early_stop_kl=limit)
        _, rollout, scores = play(recipe)
        _, taken[limit] = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    # The first epoch's second minibatch is already off the sampling policy, and the epoch ends the update.
    assert taken == {None: Steps(8, 8), 1e-9: Steps(2, 2), 1e9: Steps(8, 8)}


def test_the_critic_alone_has_targets_of_its_own_in_the_warm_up(tmp_path):
    warm = recipe_of(tmp_path / "a", vf_warmup_updates=1, lam=0.5, kl_coef=0.0)
    later = recipe_of(tmp_path / "b", vf_warmup_updates=0, lam=0.5, kl_coef=0.0)
    _, rollout, scores = play(warm)
    monte_carlo = make_experience(rollout, scores, warm).returns
    expected = scores.total.double().repeat_interleave(rollout.action_counts)
    torch.testing.assert_close(monte_carlo, expected)
    assert (make_experience(rollout, scores, later).returns - expected).abs().max() > 1e-4


def test_lambda_by_length_is_the_policys_and_leaves_the_critics_alone(tmp_path):
    plain = recipe_of(tmp_path / "a", kl_coef=0.0, whiten_advantages=False)
    adaptive = recipe_of(tmp_path / "b", kl_coef=0.0, whiten_advantages=False, lam_length_alpha=0.5)
    _, rollout, scores = play(plain)
    one, two = make_experience(rollout, scores, plain), make_experience(rollout, scores, adaptive)
    torch.testing.assert_close(one.returns, two.returns)
    assert (one.advantages - two.advantages).abs().max() > 1e-4


@pytest.mark.parametrize("rule", ["truncate", "mask"])
def test_limits_of_importance_weights(tmp_path, rule):
    recipe = recipe_of(tmp_path, anchor="recomputed", importance_cap=1.2, importance_floor=0.9, importance_rule=rule)
    _, rollout, scores = play(recipe)
    shift = torch.linspace(-0.5, 0.5, len(rollout.logprobs), dtype=torch.float64)
    experience = make_experience(dataclasses.replace(rollout, logprobs=rollout.logprobs + shift), scores, recipe)
    weights = (-shift).exp()
    within = (weights >= 0.9) & (weights <= 1.2)
    expected = weights.clamp(0.9, 1.2) if rule == "truncate" else torch.where(within, weights, 0)
    torch.testing.assert_close(experience.importance, expected)
    shown = describe(experience, scores, recipe).numbers()
    assert shown["policy/importance_avg"] == pytest.approx(float(weights.mean()))
    assert shown["policy/importance_max"] == pytest.approx(float(weights.max()))
    assert shown["policy/importance_cut"] == pytest.approx(1 - float(within.double().mean()))
    _, now = policy_objective(experience, says_now(experience, recipe), PolicyTerms.of(recipe), first=True)
    assert shown["policy/mismatch_kl"] == pytest.approx(float((weights - 1 + shift).mean()), rel=1e-4)
    assert "policy/mismatch_kl" not in now.numbers()  # it is that of all rows, and counted once
    assert now.numbers()["val/ratio_max_gap_first"] == pytest.approx(float((weights - 1).abs().max()), rel=1e-4)


def test_without_limits_no_weight_is_cut_and_recorded_log_probs_have_none(tmp_path):
    for number, (anchor, expected) in enumerate({"recomputed": {"avg", "max"}, "sampled": set()}.items()):
        recipe = recipe_of(tmp_path / str(number), anchor=anchor)
        _, rollout, scores = play(recipe)
        shown = describe(make_experience(rollout, scores, recipe), scores, recipe).numbers()
        assert {name for name in shown if "importance" in name} == {f"policy/importance_{each}" for each in expected}


def test_a_sequence_ratio_is_the_same_for_all_tokens_of_a_row(tmp_path):
    recipe = recipe_of(tmp_path, ratio_level="row", cliprange=3e-4, cliprange_high=4e-4, trust_region="unbounded")
    experience = moved_experience(recipe)
    _, metrics = policy_objective(experience, says_now(experience, recipe), PolicyTerms.of(recipe), first=True)
    now = rollout_logprobs(recipe.models.policy, experience.rollout, recipe.sampling).sampled
    gaps = (now - experience.old_logprobs).detach()
    rows = gaps.split(experience.rollout.action_counts.tolist())
    expected = sum(float(row.mean().exp()) * len(row) for row in rows) / len(gaps)
    assert metrics.numbers()["val/ratio"] == pytest.approx(expected)


def test_moments_survive_in_the_state_as_plain_numbers():
    state = State(score_moments=Moments(2.0, 1.0, 0.5))
    assert dataclasses.asdict(state)["score_moments"] == {"count": 2.0, "mean": 1.0, "squares": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cispo", "gspo", "dapo", "vapo"])
def test_recipes_learn(tmp_path, name):
    """From a third of low tokens to nearly all, each with its own way to hold the policy."""
    changes: dict[str, object] = {
        "dapo": {"stop_token_id": tuple(range(20))},
        "vapo": {"vf_warmup_updates": 3, "total_episodes": 64 * 25},
    }
    given = {
        "batch_size": 64, "per_device_train_batch_size": 64, "total_episodes": 64 * 18, "num_ppo_epochs": 3,
        "log_rollouts": False, **RECIPES[name], **changes.get(name, {}), "learning_rate": 1e-2,
        "vf_learning_rate": 1e-2 if name == "vapo" else None,
    }  # fmt: skip
    recipe = small_recipe(tmp_path, parts={"model": learner()}, **given)
    with recipe.report:
        train(recipe, State())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["objective/scores"] < 0.6
    assert lines[-1]["objective/scores"] > 0.95
