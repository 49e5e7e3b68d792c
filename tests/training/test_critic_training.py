"""When and on what the critic trains: weights of its targets, a mean in its place, an early end, a course."""

from dataclasses import replace

import pytest
import torch

from nearstep import ConfigError, PPOConfig
from nearstep.algorithm.advantage_rules import GAE, CreditInputs
from nearstep.algorithm.baselines import ExplainedBaseline
from nearstep.algorithm.value_heads import LinearHead
from nearstep.models.forward.forward import StateOutputs
from nearstep.testing import check_advantage
from nearstep.training.experience import describe, make_experience
from nearstep.training.frozen_passes import PassLimits, logprobs_under
from nearstep.training.loop import train
from nearstep.training.objectives import value_objective
from nearstep.training.reweighting import reweighted
from nearstep.training.schedules import Decoupled, Joint, Phase, RatioBand, WarmUp, phases_now
from nearstep.training.state import State
from nearstep.training.update import improve, update
from nearstep.types import Scores
from tests.checkpoint.saved_runs import assert_same_bits, everything, records, trainer_of
from tests.tiny import tiny_causal_lm
from tests.training.runs import play, settings, small_recipe

DECOUPLED = {"critic": "decoupled", "vf_learning_rate": 1e-3}
REWEIGHTED = {**DECOUPLED, "vf_reweight": "ratio"}


def values_of(experience, before, final):
    wide = {"dtype": torch.float64}
    return StateOutputs(torch.tensor(before, **wide)[:, None], torch.tensor(final, **wide)[:, None]), replace(
        experience, values=torch.tensor(before, **wide), final_values=torch.tensor(final, **wide)
    )


@pytest.fixture(scope="module")
def experience(tmp_path_factory):
    """Eight rows of up to six actions in float64, decoupled and reweighted, and their recipe."""
    recipe = small_recipe(tmp_path_factory.mktemp("run"), dtype=torch.float64, **REWEIGHTED)
    _, rollout, scores = play(recipe)
    return recipe, make_experience(rollout, scores, recipe)


def test_a_state_counts_by_its_weight_and_the_state_after_the_stop_token_by_one(experience):
    """½ · 0.5 · (1 − 0)² + ½ · 2 · (2 − 4)² + ½ · 0 · 9² + ½ · (1 − 3)² = 0.25 + 4 + 0 + 2, by states that are four."""
    _, rows = experience
    one = rows.select(torch.tensor([int(rows.rollout.action_counts.argmax())]))
    actions = len(one.old_logprobs) - 3
    before, returns, weights = (
        [1.0, 2, 5] + [0.0] * actions,
        [0.0, 4, -4] + [0.0] * actions,
        [0.5, 2, 0] + [1.0] * actions,
    )
    now, one = values_of(one, before, [1.0])
    wide = {"dtype": torch.float64}
    one = replace(
        one, returns=torch.tensor(returns, **wide), final_returns=torch.tensor([3.0], **wide),
        train_final=torch.tensor([True]), value_weights=torch.tensor(weights, **wide),
    )  # fmt: skip
    loss, metrics = value_objective(one, now, LinearHead(100.0))
    assert loss.item() == pytest.approx(6.25, abs=1e-12)
    assert metrics.numbers()["loss/value_avg"] == pytest.approx(6.25 / (actions + 4), abs=1e-12)
    plain, _ = value_objective(replace(one, value_weights=None), now, LinearHead(100.0))
    assert plain.item() == pytest.approx(0.5 + 2 + 81 / 2 + 2, abs=1e-12)


def test_weights_are_ratios_after_the_policys_steps_and_zero_outside_the_band(experience):
    recipe, rows = experience
    now = logprobs_under(recipe.models.policy, rows.rollout, recipe.sampling, PassLimits.of(recipe))
    ratios = torch.ones_like(now)
    ratios[:4] = torch.tensor([0.4, 0.6, 5.9, 6.1], dtype=now.dtype)
    moved = replace(rows, old_logprobs=now - ratios.log())
    found, metrics = reweighted(moved, RatioBand(0.5, 6.0), recipe)
    expected = ratios.clone()
    expected[0] = expected[3] = 0
    torch.testing.assert_close(found.value_weights, expected, atol=1e-12, rtol=0)
    assert not found.value_weights.requires_grad
    numbers, count = metrics.numbers(), len(now)
    assert numbers["value/weight_dropped"] == pytest.approx(2 / count)
    assert numbers["value/weight_avg"] == pytest.approx((0.6 + 5.9 + count - 4) / count)
    left = (0.6 + 5.9 + count - 4) ** 2 / (count * (0.36 + 5.9**2 + count - 4))
    assert numbers["value/weight_effective"] == pytest.approx(left)


def trained(folder, **changes):
    parts = {"model": tiny_causal_lm(layers=1, dtype=torch.float64)}
    recipe = small_recipe(
        folder, parts=parts, num_mini_batches=2, **{"learning_rate": 1e-2, "total_episodes": 8, **changes}
    )
    train(recipe, State())
    models = (recipe.models.policy.model, recipe.models.critic.model)
    return [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]


@pytest.mark.slow
def test_reweighting_moves_the_critic_otherwise_and_the_policy_alike_until_it_is_told(tmp_path):
    """In one update; the second would begin with another critic."""
    plain, weighted = trained(tmp_path / "a", **DECOUPLED), trained(tmp_path / "b", **REWEIGHTED)
    assert torch.equal(plain[0], weighted[0])
    assert (plain[1] - weighted[1]).abs().max() > 1e-6
    resting = {"learning_rate": 0.0}  # every ratio is 1
    still = trained(tmp_path / "c", **DECOUPLED, **resting), trained(tmp_path / "d", **REWEIGHTED, **resting)
    assert (still[0][1] - still[1][1]).abs().max() < 1e-9


@pytest.mark.slow
def test_no_split_changes_a_reweighted_update(tmp_path):
    split = {"per_device_train_batch_size": 3, "batch_size": 8, "local_rollout_forward_batch_size": 3}
    whole, parts = trained(tmp_path / "a", **REWEIGHTED), trained(tmp_path / "b", **REWEIGHTED, **split)
    for one, other in zip(whole, parts, strict=True):
        assert (one - other).abs().max() <= 1e-10


def test_the_divisor_is_the_number_of_states_not_the_sum_of_their_weights(tmp_path):
    """With a band that drops every state no gradient is left, and the metrics say so."""
    recipe = small_recipe(tmp_path, **DECOUPLED)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    away = replace(rows, old_logprobs=rows.old_logprobs - 5)
    phases = [Phase(1, 1, policy=True, critic=False), Phase(1, 1, policy=False, critic=True, reweight=RatioBand())]
    before = everything_of(recipe)
    metrics, steps = update(away, phases[1:], recipe)
    numbers = metrics.numbers()
    assert (numbers["value/weight_dropped"], numbers["value/grad_norm"], steps.critic) == (1.0, 0.0, 1)
    assert "value/weight_effective" not in numbers
    for one, other in zip(before, everything_of(recipe), strict=True):
        assert torch.equal(one, other)


def test_weights_that_are_all_two_double_the_gradient(tmp_path):
    """Divided by the sum of the weights it would stay as it is."""
    recipe = small_recipe(tmp_path, dtype=torch.float64, **DECOUPLED)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    now = logprobs_under(recipe.models.policy, rollout, recipe.sampling, PassLimits.of(recipe))
    rows = replace(rows, old_logprobs=now - torch.tensor(2.0).log())
    doubled, _ = reweighted(rows, RatioBand(), recipe)
    phase = Phase(1, 1, policy=False, critic=True)
    norms = []
    for each in (rows, doubled):
        recipe.learners.critic.optimizer.param_groups[0]["lr"] = 0.0
        norms.append(improve(each, phase, recipe, first=True)[0].numbers()["value/grad_norm"])
    assert norms[1] == pytest.approx(2 * norms[0], rel=1e-6)


def everything_of(recipe):
    return [p.detach().clone() for p in recipe.models.critic.model.parameters()]


def test_two_critic_epochs_are_two_steps_for_each_of_the_policys(tmp_path):
    recipe = small_recipe(tmp_path, **DECOUPLED, num_ppo_epochs=1, num_vf_epochs=2, num_mini_batches=4)
    _, rollout, scores = play(recipe)
    _, steps = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    assert (steps.policy, steps.critic) == (4, 8)


@pytest.mark.parametrize(("given", "said"), [
    ({"vf_reweight": "ratio"}, "the critic must train after them: give critic = decoupled"),
    ({"vf_reweight": "ratio", "critic_schedule": "mine.py:Mine"}, r"mine\.py:Mine says so itself, by Phase\("),
    ({"vf_warmup_until": 0.5}, "vf_warmup_updates = 0 has none: give the most updates"),
    ({"baseline_fallback": "batch_mean", "advantage": "mine.py:Mine"}, r"baselines\.ExplainedBaseline\(rule\)"),
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(given, said):
    with pytest.raises(ConfigError, match=said):
        PPOConfig(**given)


def test_objects_say_themselves_what_settings_say_of_names(tmp_path):
    with pytest.raises(ConfigError, match=r"vf_reweight: a critic schedule Joint says so itself, by Phase\("):
        small_recipe(tmp_path, **REWEIGHTED, parts={"critic_schedule": Joint(1)})
    with pytest.raises(ConfigError, match="and this is advantage GAE: leave it out, and put the rule into"):
        small_recipe(tmp_path, baseline_fallback="batch_mean", parts={"advantage": GAE()})
    own = small_recipe(tmp_path, parts={"critic_schedule": Decoupled(1, 1, 1, 3, RatioBand(0.5, 2.0))})
    assert own.schedule.phases(2)[1].reweight == RatioBand(0.5, 2.0)

    class First:
        def phases(self, update):
            return [Phase(update, 1, policy=False, critic=True, reweight=RatioBand()), *Joint(1).phases(update)]

    with pytest.raises(ConfigError, match=r"phases\(1\): .*after a phase of the policy in the same update"):
        small_recipe(tmp_path, parts={"critic_schedule": First()})


def credit_of(values, *, scored=(True, True), gamma=1.0, lam=0.5, add_up=lambda x: x):
    """Two rows, of two actions and of one: rewards 0, 1 and 3, so that returns are 1, 1 and 3."""
    wide = {"dtype": torch.float64}
    return ExplainedBaseline(GAE(gamma, lam), gamma).credit(
        CreditInputs(
            rewards=torch.tensor([0.0, 1, 3], **wide), values=torch.tensor(values, **wide),
            action_counts=torch.tensor([2, 1]), final_values=torch.zeros(2, **wide),
            final_advantages=torch.zeros(2, **wide), scored=torch.tensor(scored), update=1, response_length=2,
            add_up=add_up,
        )
    )  # fmt: skip


def test_the_mean_takes_the_place_of_values_that_explain_nothing():
    """Mean 5/3, variance 8/9. Residuals −2, −2, 2 have variance 32/9: explained is 1 − 4. λ = ½ then means nothing."""
    worse = credit_of([3.0, 3, 1])
    assert (worse.fell_back, worse.explained_variance) == (True, pytest.approx(-3))
    assert worse.advantages.tolist() == pytest.approx([-2 / 3, -2 / 3, 4 / 3])
    assert worse.targets.tolist() == pytest.approx([3 + 0.0 + 0.5 * -2, 1, 3])  # δ = (3 − 3, 1 − 3), (3 − 1)
    better = credit_of([1.0, 1, 2])
    assert (better.fell_back, better.explained_variance) == (False, pytest.approx(1 - (2 / 9) / (8 / 9)))
    assert better.advantages.tolist() == GAE(1.0, 0.5).credit(inputs_of([1.0, 1, 2])).advantages.tolist()


def inputs_of(values):
    wide = {"dtype": torch.float64}
    return CreditInputs(
        torch.tensor([0.0, 1, 3], **wide), torch.tensor(values, **wide), torch.tensor([2, 1]),
        torch.zeros(2, **wide), torch.zeros(2, **wide), torch.tensor([True, True]), 1, 2,
    )  # fmt: skip


def test_a_constant_value_explains_nothing_and_discounts_count():
    level = credit_of([7.0, 7, 7])
    assert (level.fell_back, level.explained_variance) == (True, 0.0)
    discounted = credit_of([0.0, 0, 0], gamma=0.5)  # returns ½, 1, 3, mean 1.5
    assert discounted.advantages.tolist() == pytest.approx([-1.0, -0.5, 1.5])


def test_rows_without_a_score_and_returns_that_do_not_vary():
    one = credit_of([3.0, 2, 1], scored=(True, False))  # returns 1 and 1: nothing to explain
    assert (one.fell_back, one.explained_variance) == (True, 0.0)
    assert one.advantages.tolist() == pytest.approx([0.0, 0, 2])
    assert credit_of([3.0, 2, 1], scored=(False, False)).fell_back


def test_the_rule_keeps_the_laws_of_advantages():
    check_advantage(ExplainedBaseline(GAE()), skip=("own_prompt",))  # the mean is that of the batch


def test_a_run_says_whether_it_fell_back(tmp_path):
    """The critic starts from a head of zeros: its first values explain nothing."""
    recipe = small_recipe(tmp_path, baseline_fallback="batch_mean", whiten_advantages=False, kl_coef=0.0)
    _, rollout, scores = play(recipe)
    rows = make_experience(rollout, scores, recipe)
    numbers = describe(rows, scores, recipe).numbers()
    assert numbers["val/baseline_fallback"] == 1.0
    assert numbers["val/return_explained_variance"] == pytest.approx(0.0, abs=1e-12)
    returns = rows.scores.repeat_interleave(rollout.action_counts)
    torch.testing.assert_close(rows.advantages, returns - returns.mean())
    plain = small_recipe(tmp_path)
    assert "val/baseline_fallback" not in describe(make_experience(rollout, scores, plain), scores, plain).numbers()


def test_the_warm_up_ends_after_the_update_that_explains_enough(tmp_path):
    warm = WarmUp(Joint(2), updates=3, epochs=5, until=0.5)
    alone, together = [Phase(2, 5, policy=False, critic=True)], [Phase(2, 2, policy=True, critic=True)]
    assert phases_now(warm, 2, critic_is_ready=False) == alone
    assert phases_now(warm, 2, critic_is_ready=True) == together
    recipe = small_recipe(tmp_path, vf_warmup_updates=2, vf_warmup_until=0.5, lam=0.5, lam_critic=0.25)
    _, rollout, scores = play(recipe)
    state = State(update=1)
    rows = make_experience(rollout, scores, recipe, state)
    spread = rows.returns - rows.returns.mean()
    for share, ready in ((0.25, False), (0.3, True)):  # residual (1 − s) r: 1 − (1 − s)² is 0.4375, 0.51
        state.watch_critic(replace(rows, values=share * spread), scores, recipe.config, recipe.backend)
        assert state.critic_is_ready == ready
    last = State(update=2)  # the policy starts anyway
    last.watch_critic(replace(rows, values=spread), scores, recipe.config, recipe.backend)
    assert not last.critic_is_ready


def test_a_warm_up_of_the_whole_run_needs_an_early_end(tmp_path):
    with pytest.raises(ConfigError, match="vf_warmup_updates = 3: in these only the critic trains"):
        small_recipe(tmp_path, vf_warmup_updates=3)
    told = small_recipe(tmp_path, vf_warmup_updates=3, vf_warmup_until=0.5).introduction
    assert "are all of the run's 3 updates: the policy trains only if the critic explains 0.5 of the returns" in told


def test_targets_have_the_lambda_of_the_warm_up_until_its_end():
    rule = GAE(1.0, 0.5, lam_critic=0.25, warmup_updates=3, warmup_lam=1.0)
    in_update = [replace(inputs_of([3.0, 3, 1]), update=number) for number in (0, 1, 3, 4)]
    assert [rule.critic_lam(inputs) for inputs in in_update] == [1.0, 1.0, 1.0, 0.25]
    assert rule.critic_lam(replace(in_update[1], critic_is_ready=True)) == 0.25
    assert rule.credit(replace(inputs_of([3.0, 3, 1]), update=2)).targets.tolist() == pytest.approx([1.0, 1, 3])
    ready = replace(inputs_of([3.0, 3, 1]), update=2, critic_is_ready=True)
    assert rule.credit(ready).targets.tolist() == pytest.approx([3 - 0.25 * 2, 1, 3])


def test_unscored_rows_do_not_end_a_warm_up(tmp_path):
    recipe = small_recipe(tmp_path, vf_warmup_updates=2, vf_warmup_until=0.5)
    _, rollout, scores = play(recipe)
    state = State(update=1)
    rows = make_experience(rollout, scores, recipe, state)
    nothing = Scores(torch.full_like(scores.total, torch.nan))
    state.watch_critic(replace(rows, values=rows.returns), nothing, recipe.config, recipe.backend)
    assert not state.critic_is_ready


@pytest.mark.slow
def test_courses_of_policy_and_critic_are_apart(tmp_path):
    """Four updates: linear from 1 to ¼, and a rise over two updates."""
    given = {"lr_scheduler_type": "linear", "vf_lr_scheduler_type": "constant_with_warmup", "vf_lr_warmup_steps": 2}
    sizes = {"batch_size": 2, "total_episodes": 8, "num_ppo_epochs": 1, "save_steps": None}
    rates = {"learning_rate": 0.01, "vf_learning_rate": 0.02}
    trainer = trainer_of(tmp_path, model=tiny_causal_lm(layers=1), **given, **sizes, **rates)
    trainer.train()
    rates = [(line["lr"], line["vf_lr"]) for line in records(tmp_path)["metrics.jsonl"]]
    assert rates == [
        (pytest.approx(0.01 * left), pytest.approx(0.02 * risen))
        for left, risen in zip((1, 0.75, 0.5, 0.25), (0, 0.5, 1, 1), strict=True)
    ]


def test_a_course_that_never_gets_to_its_peak_is_told_or_refused(tmp_path):
    with pytest.raises(ConfigError, match="vf_lr_warmup_steps = 1 is no shorter than the run, which has 1 update: its"):
        small_recipe(tmp_path, total_episodes=8, vf_lr_warmup_steps=1, vf_lr_scheduler_type="linear")
    late = small_recipe(tmp_path, vf_lr_warmup_steps=4, vf_lr_scheduler_type="linear")
    assert "Of the critic: vf_lr_warmup_steps = 4 is no shorter than the run" in late.introduction
    same = small_recipe(tmp_path, warmup_steps=4, lr_scheduler_type="linear")
    assert same.introduction.count("no shorter than the run") == 1


@pytest.mark.parametrize(("given", "said"), [
    ({"vf_reweight_high": 2.0}, "vf_reweight_high has no effect without vf_reweight = ratio"),
    ({"vf_pretrain_epochs": 2}, "vf_pretrain_epochs has no effect without vf_pretrain_rollouts"),
    ({"vf_lr_warmup_steps": 2, "lr_scheduler_type": "constant"}, "vf_lr_warmup_steps has no effect with a constant"),
    ({"advantage": "group_mean", "num_generations": 2, "vf_lr_warmup_steps": 2}, "no effect with advantage = group_m"),
])  # fmt: skip
def test_what_has_no_effect_is_told(given, said):
    with pytest.warns(UserWarning, match=said):
        PPOConfig(**given)


def test_warmup_steps_have_an_effect_where_only_the_critics_rate_rises(recwarn):
    PPOConfig(lr_scheduler_type="constant", vf_lr_scheduler_type="linear", warmup_steps=3)
    assert not [str(warning.message) for warning in recwarn if "warmup_steps" in str(warning.message)]


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_bits(tmp_path):
    """The critic alone in the first update of at most two, for it explains enough; then all that is new at once."""
    changed = {
        **REWEIGHTED, "vf_warmup_updates": 2, "vf_warmup_until": -50.0, "vf_lr_scheduler_type": "linear",
        "baseline_fallback": "batch_mean", "total_episodes": 24,
    }  # fmt: skip
    unbroken = trainer_of(tmp_path, model=tiny_causal_lm(layers=1), **changed)
    unbroken.train()
    expected, written = everything(unbroken), records(tmp_path)
    assert unbroken.state.critic_is_ready
    assert [line["optimizer/steps"] for line in written["metrics.jsonl"]] == [0, 2, 4]
    assert all("value/weight_avg" in line for line in written["metrics.jsonl"][1:])
    resumed = trainer_of(tmp_path, model=tiny_causal_lm(layers=1), **changed)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-1")
    assert_same_bits(everything(resumed), expected)
    assert resumed.state == unbroken.state
    assert records(tmp_path) == written


def test_settings_choose_the_objects(tmp_path):
    recipe = small_recipe(tmp_path, **REWEIGHTED, vf_reweight_high=3.0, vf_warmup_updates=2, vf_warmup_until=0.1)
    assert recipe.schedule == WarmUp(Decoupled(2, 1, 1, 3, RatioBand(0.0, 3.0)), 2, 1, 0.1)
    assert "alone in the first 2 updates at most" in str(recipe.batch.table())
    assert settings(tmp_path).baseline_fallback == "none"
