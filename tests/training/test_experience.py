"""Experience: where the score lands, what whitening does, what does not depend on padding or on PAD being EOS."""

import dataclasses

import pytest
import torch

from nearstep.metrics import Metrics
from nearstep.models.forward.forward import rollout_logprobs, rollout_values
from nearstep.models.roles import make_critic
from nearstep.training.experience import describe, make_experience
from nearstep.training.generation import generate
from nearstep.types import Rollout, Scores
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_scalar_model
from tests.training.runs import play, small_recipe

EOS = 256


def hand_rollout():
    """Row 0 ends itself after two actions, row 1 is cut after six."""
    tokens = [1, 2, 10, EOS, 3, 11, 12, 13, 14, 15, 16]
    is_action = [0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1]
    return Rollout(
        tokens=torch.tensor(tokens), is_action=torch.tensor(is_action, dtype=torch.bool),
        row_lengths=torch.tensor([4, 7]), logprobs=torch.full((8,), -2.0), finished=torch.tensor([True, False]),
        policy_version=torch.tensor([1, 1]), )  # fmt: skip


def plain(tmp_path, **changes):
    given = {"kl_coef": 0.0, "lam": 1.0, "whiten_advantages": False, **changes}
    critic = tiny_scalar_model(dtype=torch.float64)
    return small_recipe(tmp_path, dtype=torch.float64, parts={"value_model": critic}, **given)


def test_without_a_penalty_no_reference_is_loaded_unless_it_is_asked_for(tmp_path):
    without, measured = plain(tmp_path / "a"), plain(tmp_path / "b", measure_kl=True)
    assert without.models.reference is None
    found = [make_experience(hand_rollout(), SCORES, recipe) for recipe in (without, measured)]
    assert found[0].ref_logprobs is None
    assert torch.equal(found[0].advantages, found[1].advantages)
    described = [
        describe(experience, SCORES, recipe).numbers()
        for experience, recipe in zip(found, (without, measured), strict=True)
    ]
    of_kl = {"objective/kl", "objective/kl_per_token", "objective/kl_k3", "objective/kl_coef"}
    assert described[0].keys() == described[1].keys() - of_kl - {"objective/score_likelihood_correlation"}
    assert described[0]["objective/rlhf_reward"] == described[0]["objective/scores"] == 2.5
    assert "No KL is measured" in without.introduction


SCORES = Scores(torch.tensor([2.0, 3.0]))


def test_last_token_pays_both_rows_alike_d9(tmp_path):
    experience = make_experience(hand_rollout(), SCORES, plain(tmp_path))
    assert experience.rewards.tolist() == [0, 2, 0, 0, 0, 0, 0, 3]
    torch.testing.assert_close(experience.returns, torch.tensor([2.0, 2, 3, 3, 3, 3, 3, 3], dtype=torch.float64))
    assert not experience.train_final.any()


def test_after_eos_pays_finished_rows_one_step_later_d9(tmp_path):
    recipe = plain(tmp_path, score_position="after_eos", lam=0.95)
    experience = make_experience(hand_rollout(), SCORES, recipe)
    assert experience.rewards.tolist() == [0, 0, 0, 0, 0, 0, 0, 3]
    assert experience.train_final.tolist() == [True, False]
    assert experience.final_returns.tolist() == [2, 0]
    values = rollout_values(recipe.models.critic, hand_rollout())
    last = values.final[0] - values.before_actions[1] + 0.95 * (2 - values.final[0])
    torch.testing.assert_close(experience.advantages[1], last.detach())


def test_a_row_that_ends_exactly_at_its_limit_is_paid_on_its_last_token_after_eos_too(tmp_path):
    recipe = plain(tmp_path, score_position="after_eos", response_length=2)
    experience = make_experience(hand_rollout(), SCORES, recipe)
    assert not experience.train_final.any()


def test_penalties_look_at_what_the_engine_saw_d7(tmp_path):
    subtracted = make_experience(hand_rollout(), SCORES, plain(tmp_path, missing_eos_penalty=0.5))
    assert subtracted.scores.tolist() == [2.0, 2.5]
    replaced = make_experience(hand_rollout(), SCORES, plain(tmp_path, non_eos_penalty=True, penalty_reward_value=-4.0))
    assert replaced.scores.tolist() == [2.0, -4.0]


def test_kl_is_subtracted_by_token(tmp_path):
    recipe = plain(tmp_path, kl_coef=0.1)
    experience = make_experience(hand_rollout(), SCORES, recipe)
    expected = -0.1 * (experience.old_logprobs - experience.ref_logprobs)
    torch.testing.assert_close(experience.rewards[:1], expected[:1].double())
    torch.testing.assert_close(experience.rewards[1], expected[1].double() + 2)


def test_advantages_are_whitened_over_actions_and_returns_are_not(tmp_path):
    raw = make_experience(hand_rollout(), SCORES, plain(tmp_path))
    white = make_experience(hand_rollout(), SCORES, plain(tmp_path, whiten_advantages=True))
    assert white.advantages.mean().abs() < 1e-12
    assert white.advantages.var().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(white.returns, raw.returns)


def test_whitened_rewards_keep_their_mean_sign_and_include_the_score_after_eos(tmp_path):
    for position in ("last_token", "after_eos"):
        recipe = plain(tmp_path, whiten_rewards=True, score_position=position)
        experience = make_experience(hand_rollout(), SCORES, recipe)
        together = torch.cat([experience.rewards, experience.final_returns[experience.train_final]])
        assert together.var().item() == pytest.approx(1, rel=1e-4)
        assert together.min() >= -1e-9


def test_metrics_of_a_rollout_by_hand(tmp_path):
    recipe = plain(tmp_path, kl_coef=0.1, missing_eos_penalty=1.0)
    experience = make_experience(hand_rollout(), SCORES, recipe)
    shown = describe(experience, SCORES, recipe).numbers()
    kl = experience.old_logprobs - experience.ref_logprobs
    by_row = [float(kl[:2].sum()), float(kl[2:].sum())]
    assert shown["objective/kl"] == pytest.approx(sum(by_row) / 2)
    assert shown["objective/kl_per_token"] == pytest.approx(sum(by_row) / 8)
    assert shown["objective/entropy"] == pytest.approx(8.0)  # (2·2 + 6·2) / 2, and no padding in it (D6)
    assert shown["objective/scores"] == pytest.approx(2.0)
    assert shown["objective/scores_raw"] == pytest.approx(2.5)
    assert shown["objective/non_score_reward"] == pytest.approx(-0.1 * sum(by_row) / 2)
    assert shown["objective/rlhf_reward"] == pytest.approx(
        shown["objective/scores"] + shown["objective/non_score_reward"]
    )
    assert shown["response/length_mean"] == 4
    assert shown["response/length_max"] == 6
    assert shown["response/truncated"] == 0.5
    assert shown["val/num_eos_tokens"] == 0.5
    residual = experience.returns - experience.values
    explained = 1 - residual.var(correction=0) / experience.returns.var(correction=0)
    assert shown["val/explained_variance"] == pytest.approx(float(explained), abs=1e-6)


@pytest.mark.parametrize("pad", [slow("<pad>"), "<eos>", slow(None)])
def test_pad_may_be_eos_or_absent_d5_d27_r26(tmp_path, pad):
    """Masks and lengths are facts of the engine, so the numbers are the same whatever PAD is."""
    found = []
    for tokenizer in (byte_tokenizer(), byte_tokenizer(pad=pad)):
        tokenizer.add_tokens(["<another>"] * (258 - len(tokenizer)))  # ids beyond the tokenizer's are never sampled
        recipe = small_recipe(
            tmp_path, parts={"tokenizer": tokenizer}, response_length=12, stop_token_id=(EOS, 257, 101)
        )
        _, rollout, scores = play(recipe)
        found.append(make_experience(rollout, scores, recipe))
    assert torch.equal(found[0].rollout.is_action, found[1].rollout.is_action)
    assert torch.equal(found[0].rollout.finished, found[1].rollout.finished)
    torch.testing.assert_close(found[0].advantages, found[1].advantages)


def test_constant_scores_add_nothing_to_whitened_advantages_10_9(tmp_path):
    """With V = 0 and γ = λ = 1, one number added to every score leaves whitened advantages as they are."""
    recipe = small_recipe(tmp_path, dtype=torch.float64, lam=1.0)
    _, rollout, scores = play(recipe)
    scores = dataclasses.replace(scores, total=torch.arange(8.0))
    more = dataclasses.replace(scores, total=scores.total + 5)
    one, two = make_experience(rollout, scores, recipe), make_experience(rollout, more, recipe)
    torch.testing.assert_close(one.advantages, two.advantages, atol=1e-9, rtol=0)


def test_metrics_of_rows_together_are_those_of_rows_alone_d6_d10(tmp_path):
    """Nothing is padded, so a long row beside a short one changes no diagnostic of either."""
    recipe = plain(tmp_path, kl_coef=0.1)
    whole = make_experience(hand_rollout(), SCORES, recipe)
    both = describe(whole, SCORES, recipe).by_name
    alone = Metrics()
    for row in range(2):
        rows = torch.tensor([row])
        alone += describe(whole.select(rows), Scores(SCORES.total[rows]), recipe)
    for name, metric in both.items():
        assert Metrics({name: metric}).numbers() == pytest.approx(
            Metrics({name: alone.by_name[name]}).numbers(), abs=1e-9
        )


def test_truncated_rows_may_be_bootstrapped_d34(tmp_path):
    critic = tiny_scalar_model(dtype=torch.float64)
    recipe = plain(tmp_path, bootstrap_truncated=True)
    final = rollout_values(make_critic(critic), hand_rollout()).final.detach()
    experience = make_experience(hand_rollout(), SCORES, recipe)
    assert experience.final_values.tolist() == [0.0, final[1].item()]
    torch.testing.assert_close(experience.returns[-1], 3 + final[1])
    torch.testing.assert_close(experience.returns[:2], torch.tensor([2.0, 2.0], dtype=torch.float64))
    assert not experience.train_final.any()


def test_the_critic_may_have_a_lambda_of_its_own(tmp_path):
    one = make_experience(hand_rollout(), SCORES, plain(tmp_path, lam=0.5, lam_critic=1.0))
    policy, critic = (make_experience(hand_rollout(), SCORES, plain(tmp_path, lam=lam)) for lam in (0.5, 1.0))
    assert torch.equal(one.advantages, policy.advantages)
    assert torch.equal(one.returns, critic.returns)
    assert not torch.equal(one.returns, policy.returns)


def test_scores_may_be_cut(tmp_path):
    assert make_experience(hand_rollout(), SCORES, plain(tmp_path, reward_clip=2.5)).scores.tolist() == [2.0, 2.5]


def test_anchors(tmp_path):
    """The engine recorded −2 everywhere; the trainer says something else."""
    sampled = make_experience(hand_rollout(), SCORES, plain(tmp_path))
    assert torch.equal(sampled.old_logprobs, hand_rollout().logprobs)
    assert (sampled.importance == 1).all()
    recipe = plain(tmp_path, anchor="recomputed", temperature=0.7)
    now = rollout_logprobs(recipe.models.policy, hand_rollout(), recipe.sampling).sampled.detach()
    again = make_experience(hand_rollout(), SCORES, recipe)
    torch.testing.assert_close(again.old_logprobs, now)
    assert (again.importance == 1).all()
    weighted = make_experience(
        hand_rollout(), SCORES, plain(tmp_path, anchor="recomputed", temperature=0.7, importance_cap=0.1)
    )
    expected = (now + 2).exp().clamp(max=0.1)
    torch.testing.assert_close(weighted.importance, expected)
    assert 0 < (expected < 0.1).sum() < len(expected)


def test_an_anchor_computed_anew_covers_the_top_tokens(tmp_path):
    recipe = small_recipe(tmp_path, trust_region="topk_kl", anchor="recomputed")
    prompts = recipe.prompts.batch(1)
    rollout = generate(prompts, recipe, version=1)
    experience = make_experience(rollout, recipe.rewards(prompts, rollout), recipe)
    torch.testing.assert_close(experience.old_top, rollout.top.logprobs, atol=1e-5, rtol=0)
    half = experience.select(torch.tensor([3, 1]))
    assert half.old_top.shape == (len(half.old_logprobs), 20)
