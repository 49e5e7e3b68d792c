"""Axes: every name has its object, the user's own take their place and are checked; numbers of all by hand."""

import dataclasses
import json
import math
from dataclasses import dataclass

import pytest
import torch

from nearstep import ConfigError, PPOTrainer, RewardError
from nearstep.algorithm.advantage_rules import GAE, AgainstGroup, Credit, CreditInputs, DiscountedReturn
from nearstep.algorithm.aggregation import TokenMean
from nearstep.algorithm.kl_controllers import AdaptiveKL, MeasuredKL, ScheduledKL
from nearstep.algorithm.row_regions import SAT
from nearstep.algorithm.trust_regions import BinaryTV, Clip, LoggedLoss, Unbounded
from nearstep.assembly import axes, corrections, named_axes, selection
from nearstep.assembly.axis_checks import fitting_schedule
from nearstep.common.errors import TrainingError
from nearstep.config import axes as axis_names
from nearstep.config import selection as selection_names
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.training.credit import give_credit
from nearstep.training.experience import describe, make_experience
from nearstep.training.loop import train
from nearstep.training.objectives import PolicyTerms, policy_objective
from nearstep.training.schedules import Joint, Phase, WarmUp
from nearstep.training.state import State
from nearstep.training.update import update
from nearstep.types import Scores
from tests.lanes import slow
from tests.tiny import byte_tokenizer, tiny_causal_lm
from tests.training.runs import low_ids, play, settings, small_recipe
from tests.training.test_objective_metrics import experience

GROUPS = {"num_generations": 4, "kl_coef": 0.0}
TOTALS = torch.tensor([1.0, 2.0, 3.0, 6.0, 0.0, 0.0, 4.0, 4.0])
LEFT_ONE_OUT = torch.tensor([-8 / 3, -4 / 3, 0, 4, -8 / 3, -8 / 3, 8 / 3, 8 / 3], dtype=torch.float64)


def test_every_name_of_the_table_has_its_object():
    for names, objects in (
        (axis_names.TRUST_REGIONS, named_axes.TRUST_REGIONS),
        (axis_names.ADVANTAGES, named_axes.ADVANTAGES),
        (axis_names.KL_CONTROLLERS, {"auto": None, **named_axes.KL_CONTROLLERS}),
        (axis_names.CORRECTIONS, corrections.CORRECTIONS),
        (axis_names.CRITIC_SCHEDULES, named_axes.CRITIC_SCHEDULES),
        (axis_names.LOSS_AGGREGATIONS, named_axes.LOSS_AGGREGATIONS),
        (selection_names.SAMPLERS, selection.SAMPLERS),
        (selection_names.GATES, selection.GATES),
    ):
        assert names == tuple(objects)


# Advantages


def two_rows(**changes):
    """Row 0 has two actions, row 1 three; V is 1 everywhere."""
    given = {
        "rewards": torch.tensor([0.0, 2, 0, 0, 4]), "values": torch.ones(5), "action_counts": torch.tensor([2, 3]),
        "final_values": torch.zeros(2), "final_advantages": torch.zeros(2), "scored": torch.tensor([True, True]),
        "update": 3, "response_length": 4,
    }  # fmt: skip
    return CreditInputs(**{**given, **changes})


def test_gae_by_hand_with_a_lambda_of_the_critics_own():
    credit = GAE(gamma=1.0, lam=0.5, lam_critic=1.0).credit(two_rows())
    # δ of row 0: 0 and 1; of row 1: 0, 0 and 3
    assert credit.advantages.tolist() == [0.5, 1, 0.75, 1.5, 3]
    assert credit.targets.tolist() == [2, 2, 4, 4, 4]


def test_the_warm_up_goes_by_the_number_of_the_update():
    rule = GAE(lam=0.5, warmup_updates=2, warmup_lam=1.0)
    assert rule.credit(two_rows(update=2)).targets.tolist() == [2, 2, 4, 4, 4]
    assert rule.credit(two_rows(update=3)).targets.tolist() == [1.5, 2, 1.75, 2.5, 4]


def test_the_warm_up_does_not_go_by_the_weights_that_sampled(tmp_path):
    recipe = small_recipe(tmp_path, vf_warmup_updates=1, lam=0.5, kl_coef=0.0, dtype=torch.float64)
    _, rollout, scores = play(recipe)
    stale = dataclasses.replace(rollout, policy_version=torch.zeros_like(rollout.policy_version))
    late = [make_experience(each, scores, recipe, State(update=2)).returns for each in (stale, rollout)]
    assert torch.equal(*late)
    assert (late[0] - make_experience(stale, scores, recipe, State(update=1)).returns).abs().max() > 1e-4


def test_a_discounted_return_by_hand():
    assert DiscountedReturn(gamma=0.5).credit(two_rows()).advantages.tolist() == [1, 2, 1, 2, 4]
    undiscounted = GAE(gamma=1.0, lam=1.0).credit(two_rows(values=torch.zeros(5)))
    assert DiscountedReturn().credit(two_rows()).advantages.tolist() == undiscounted.advantages.tolist()


def test_a_group_that_is_played_in_two_processes():
    """This process holds the last row of the first prompt and the first of the second."""
    everywhere = {torch.float32: torch.tensor([1.0, 2.0, 4.0, 10.0]), torch.bool: torch.ones(4, dtype=torch.bool)}
    inputs = two_rows(group_size=2, first_row=1, gather_rows=lambda values: everywhere[values.dtype])
    assert AgainstGroup("leave_one_out").credit(inputs).advantages.tolist() == [1, 1, -6, -6, -6]


@pytest.mark.parametrize("whiten", [None, slow(True), slow(False)])
def test_leave_one_out_by_hand_with_and_without_whitening(tmp_path, whiten):
    recipe = small_recipe(tmp_path, advantage="leave_one_out", whiten_advantages=whiten, dtype=torch.float64, **GROUPS)
    _, rollout, _ = play(recipe)
    experience = make_experience(rollout, Scores(TOTALS), recipe)
    expected = LEFT_ONE_OUT.repeat_interleave(rollout.action_counts)
    torch.testing.assert_close(experience.raw_advantages, expected)
    if whiten:
        expected = (expected - expected.mean()) / expected.std()
    torch.testing.assert_close(experience.advantages, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("advantage", "whitened"), [
    ("gae", True), ("batch_normalized", True), ("group_mean", False), ("group_normalized", False),
])  # fmt: skip
def test_what_is_whitened_if_nothing_is_said(tmp_path, advantage, whitened):
    config = settings(tmp_path, advantage=advantage, num_generations=2)
    assert axes.whitens(config, axes.advantage(config)) == whitened


def test_rewards_of_tokens_are_not_flattened(tmp_path):
    _, rollout, _ = play(small_recipe(tmp_path / "a", **GROUPS))
    scores = Scores(TOTALS, dense=torch.ones(len(rollout.logprobs)))
    with pytest.raises(RewardError, match="advantage group_mean looks only at the sum of a row"):
        make_experience(rollout, scores, small_recipe(tmp_path / "b", advantage="group_mean", **GROUPS))
    recipe = small_recipe(tmp_path / "c", advantage="batch_normalized", **GROUPS)
    assert make_experience(rollout, scores, recipe).raw_advantages[0] == TOTALS[0] + rollout.action_counts[0]


def test_rows_without_a_score_are_in_no_spread(tmp_path):
    recipe = small_recipe(tmp_path, dtype=torch.float64, whiten_advantages=False)
    _, rollout, scores = play(recipe)
    lost = dataclasses.replace(scores, total=scores.total.index_fill(0, torch.tensor([1]), torch.nan))
    experience = make_experience(rollout, lost, recipe)
    kept = torch.ones(len(rollout.logprobs), dtype=torch.bool)
    start, length = int(rollout.action_counts[0]), int(rollout.action_counts[1])
    kept[start : start + length] = False
    shown = describe(experience, lost, recipe).numbers()
    assert shown["val/advantage_std"] == pytest.approx(float(experience.advantages[kept].std(correction=0)))
    residual, returns = (experience.returns - experience.values)[kept], experience.returns[kept]
    assert shown["val/explained_variance"] == pytest.approx(
        float(1 - residual.var(correction=0) / returns.var(correction=0))
    )


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"lam": 0.5, "lam_critic": 1.0}, GAE(lam=0.5)),
        ({"lam": 0.5, "lam_length_alpha": 0.5}, GAE(lam=0.5, lam_length_alpha=0.5)),
        ({"lam": 0.5, "vf_warmup_updates": 2}, GAE(lam=0.5)),  # during which the critic's λ is 1
    ],
    ids=["lam_critic", "lam_length_alpha", "warm-up"],
)
def test_the_spread_of_advantages_is_theirs_and_not_the_critics_residual(tmp_path, settings, rule):
    recipe = small_recipe(tmp_path, dtype=torch.float64, **settings)
    _, rollout, scores = play(recipe)
    experience = make_experience(rollout, scores, recipe)
    shown = describe(experience, scores, recipe).numbers()["val/advantage_std"]
    by_hand = dataclasses.replace(recipe, advantage=rule, whiten_advantages=False)
    advantages = make_experience(rollout, scores, by_hand).advantages
    assert shown == pytest.approx(float(advantages.std(correction=0)), rel=1e-5)
    assert shown != pytest.approx(float((experience.returns - experience.values).std(correction=0)), rel=1e-2)


# KL controllers


@pytest.mark.parametrize(("shape", "halfway"), [("linear", 0.15), ("cosine", 0.15)])
def test_a_scheduled_coefficient_by_hand(shape, halfway):
    controller = ScheduledKL(0.2, 0.1, shape)
    course = [controller.first(), *(controller.next(9.9, MeasuredKL(1.0, 8, done, 5)) for done in range(1, 5))]
    assert (course[0], course[2], course[4]) == pytest.approx((0.2, halfway, 0.1))
    quarter = 0.175 if shape == "linear" else 0.2 - 0.1 * (1 - math.cos(math.pi / 4)) / 2
    assert course[1] == pytest.approx(quarter)


def test_an_adaptive_coefficient_by_hand():
    controller = AdaptiveKL(0.2, target=6.0, horizon=100)
    assert controller.next(0.2, MeasuredKL(6.6, 10, 1, 5)) == pytest.approx(0.2 * (1 + 0.1 * 10 / 100))
    assert controller.next(0.2, MeasuredKL(60.0, 10, 1, 5)) == pytest.approx(0.2 * (1 + 0.2 * 10 / 100))


@pytest.mark.parametrize(("given", "expected"), [
    slow(({"kl_coef": 0.1}, [0.1, 0.1, 0.1])),
    slow(({"kl_coef": 0.0, "kl_coef_final": 0.2}, [0.0, 0.1, 0.2])),
    ({"kl_coef": 0.3, "kl_controller": "scheduled", "kl_coef_final": 0.1}, [0.3, 0.2, 0.1]),
])  # fmt: skip
def test_the_coefficient_is_logged_in_every_update(tmp_path, given, expected):
    recipe = small_recipe(tmp_path, num_ppo_epochs=1, **given)
    with recipe.report:
        train(recipe, State())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["objective/kl_coef"] for line in lines] == pytest.approx(expected)


@pytest.mark.parametrize(("given", "said"), [
    ({"kl_controller": "adaptive"}, "kl_controller = adaptive needs kl_target"),
    ({"kl_controller": "scheduled"}, "kl_controller = scheduled needs kl_coef_final"),
    ({"kl_target": 1.0, "kl_coef_final": 0.1}, "give one"),
    ({"kl_coef": 0.0, "kl_coef_final": 0.1, "measure_kl": False}, "a KL penalty needs the KL"),
    ({"kl_controller": "adaptative"}, "did you mean adaptive"),
    ({"critic": "decoupled", "critic_schedule": "joint"}, "both say when the critic trains"),
    ({"advantage": "batch_normalized", "whiten_advantages": False}, "is the whitened return"),
    ({"loss_aggregation": "token_men"}, "did you mean token_mean"),
    ({"trust_region": "my.py"}, r"write an object of your own as file.py:Name, my\.py:Name"),
    ({"trust_region": "my:Hellinger"}, r"write an object of your own as file.py:Name, my\.py:Hellinger"),
])  # fmt: skip
def test_settings_that_contradict_each_other(tmp_path, given, said):
    with pytest.raises(ConfigError, match=said):
        settings(tmp_path, **given)


# Objects of the user's


@dataclass(frozen=True)
class TrainsCritic:
    def phases(self, update):
        return [Phase(update, 1, policy=True, critic=update > 1)]


@dataclass(frozen=True)
class BoolMask:
    top_k: int = 0

    def weight(self, now, old, advantages, rows):
        return now.sampled < old.sampled


@dataclass(frozen=True)
class Older:
    """A region as they were written before weights."""

    top_k: int = 0

    def inside(self, now, old, advantages):
        return now.sampled < old.sampled


class NoNeedsCritic:
    uses_token_rewards = True

    def credit(self, inputs):
        return Credit(inputs.rewards)


class NoTargets(GAE):
    def credit(self, inputs):
        return Credit(inputs.rewards)


class Fails(Unbounded):
    def weight(self, now, old, advantages, rows):
        return now.top.sum(-1)


@dataclass(frozen=True)
class HalfDivisor(TokenMean):
    share: float = 0.5

    def divisor(self, counts):
        return counts.tokens * self.share


class Negative(AdaptiveKL):
    def next(self, coefficient, measured):
        return -1.0


class NegativeWeights(TokenMean):
    def weights(self, action_counts):
        return -super().weights(action_counts)


class NoWeights(TokenMean):
    def weights(self, action_counts):
        return 0 * super().weights(action_counts)


@dataclass(frozen=True)
class Says:
    """A schedule with these phases; `update` is put in where a phase has 0."""

    course: tuple[Phase, ...]

    def phases(self, update):
        return [dataclasses.replace(phase, update=phase.update or update) for phase in self.course]


class Remembers:
    asked = 0

    def phases(self, update):
        self.asked += 1
        return [Phase(update, self.asked, policy=True, critic=True)]


class TrainsLate:
    def phases(self, update):
        return [] if update < 3 else [Phase(update, 1, policy=True, critic=True)]


@pytest.mark.parametrize(("given", "said"), [
    ({"trust_region": BoolMask(top_k=-1)}, "top_k is -1; it is a whole number"),
    ({"loss_aggregation": NegativeWeights()}, "weights is -1 at action 0 of 1065; a weight is finite and from 0 on"),
    ({"loss_aggregation": NoWeights()}, "weights are all 0 for rows of 2, 0, 3"),
    ({"critic_schedule": Says(())}, "Says trains the policy in none of the run's 3 updates"),
    ({"critic_schedule": Says((Phase(0, 1, False, True),))}, "trains the policy in none of the run's 3 updates"),
    ({"critic_schedule": Says((Phase(0, 0, True, True),))}, "epochs=0.*epochs is a whole number from 1 on"),
    ({"critic_schedule": Says((Phase(0, 1, False, False),))}, "it trains nothing; leave it out"),
    ({"critic_schedule": Says((Phase(1, 1, True, True),))}, r"phases\(2\) holds Phase\(update=1.*Phase\(2, …\)"),
    ({"critic_schedule": Remembers()}, r"when asked again; a resumed run"),
    ({"trust_region": "my.py:Hellinger"}, r"is a name, and .*PPOConfig\(trust_region='my.py:Hellinger'\)"),
    ({"trust_region": BoolMask()}, r"weight returned a tensor of torch.bool; .* of a comparison return .float\(\)"),
    ({"trust_region": Older()}, r"inside\(now, old, advantages\) is now weight\(now, old, advantages, rows\)"),
    ({"trust_region": Fails()}, "trust region Fails failed on a small made-up batch: AttributeError"),
    ({"trust_region": object()}, r"trust region object \(a object\) has no `top_k` and no `weight`"),
    ({"advantage": NoNeedsCritic()}, "has no `needs_critic`; it needs needs_critic"),
    ({"advantage": NoTargets()}, "credit returned no targets"),
    ({"critic_schedule": TrainsCritic(), "advantage": DiscountedReturn()}, "trains a critic in update 2, and adv"),
    ({"kl_controller": Negative(0.1, 1.0, 10)}, r"next\(…\) is -1.0; a coefficient is a number from 0 on"),
    ({"loss_aggregation": HalfDivisor()}, "divisor for 0 tokens in 0 rows is 0; it must be above 0"),
    ({"kl_controller": object()}, "has no `first` and no `next`"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_before_training_with_what_to_do(tmp_path, given, said):
    with pytest.raises(ConfigError, match=said):
        small_recipe(tmp_path, parts=given)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("updates", "refused"), [(3, False), (2, True)])
def test_a_schedule_may_begin_late_but_within_the_run(updates, refused):
    if refused:
        with pytest.raises(ConfigError, match="in none of the run's 2 updates"):
            fitting_schedule(TrainsLate(), "critic schedule", updates)
    else:
        fitting_schedule(TrainsLate(), "critic schedule", updates)


def test_a_long_run_is_asked_until_the_policy_trains():
    late = WarmUp(Joint(1), updates=2000, epochs=1)
    fitting_schedule(late, "critic schedule", 3000)
    with pytest.raises(ConfigError, match="in none of the run's 2000 updates"):
        fitting_schedule(late, "critic schedule", 2000)


def test_an_object_and_a_setting_on_one_axis(tmp_path):
    with pytest.raises(ConfigError, match="trust_region: an object was passed, and the settings say"):
        small_recipe(tmp_path, trust_region="binary_tv", parts={"trust_region": Clip()})
    with pytest.raises(ConfigError, match="BinaryTV compares distributions of single tokens"):
        small_recipe(tmp_path, ratio_level="row", parts={"trust_region": BinaryTV()})
    with pytest.raises(ConfigError, match="SAT compares the ratios of a row's tokens"):
        small_recipe(tmp_path, ratio_level="turn", parts={"trust_region": SAT()})


@dataclass(frozen=True)
class Baseline:
    """Return minus value; the critic learns the return."""

    needs_critic: bool = True
    uses_token_rewards: bool = True

    def credit(self, inputs):
        totals = DiscountedReturn().credit(inputs).advantages
        return Credit(totals - inputs.values, totals)


def test_the_trainer_takes_an_object_on_every_axis(tmp_path):
    trainer = PPOTrainer(
        settings(tmp_path, total_episodes=8), byte_tokenizer(), tiny_causal_lm(), reward_funcs=low_ids,
        train_dataset=[{"prompt": "ab"}] * 8, trust_region=BinaryTV(0.3, 0.3), advantage=Baseline,
        kl_controller=ScheduledKL(0.5, 0.0), critic_schedule=TrainsCritic(), loss_aggregation=TokenMean(),
    )  # fmt: skip
    r = trainer.recipe
    assert (r.trust_region, r.ratio_limit) == (BinaryTV(0.3, 0.3), 20.0)
    assert r.advantage == Baseline()
    assert r.whiten_advantages
    assert r.models.critic is not None
    trainer.train()
    assert (trainer.state.steps.policy, trainer.state.steps.critic) == (1, 0)
    assert r.report.reporter.latest["objective/kl_coef"] == 0.5


class ClipOfMine(Unbounded):
    """Not a Clip, and yet it says what it logs."""

    def logged(self, ratio, advantages):
        return LoggedLoss(torch.full_like(ratio, 7.0), torch.full_like(ratio, 8.0), torch.full_like(ratio, 9.0))


def test_a_region_says_itself_what_is_logged_of_it(tmp_path):
    recipe = small_recipe(tmp_path, num_ppo_epochs=1, parts={"trust_region": ClipOfMine()})
    _, rollout, scores = play(recipe)
    metrics, _ = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
    shown = metrics.numbers()
    assert [shown[name] for name in ("loss/policy_avg", "loss/policy_abs", "val/ratio_clamped")] == [7, 8, 9]


# What is wrong only on a real batch


@dataclass(frozen=True)
class Returns:
    """An advantage that returns what it was given."""

    returned: object
    needs_critic: bool = True
    uses_token_rewards: bool = True

    def credit(self, inputs):
        return self.returned


FIVE = torch.ones(5)


def credit_of(advantages, targets=None):
    """A Credit as a user's program makes one: nothing checks its shapes."""
    credit = object.__new__(Credit)
    vars(credit).update(advantages=advantages, targets=targets)
    return credit


@pytest.mark.parametrize(("credit", "said"), [
    (credit_of(torch.ones(6), FIVE), r"advantages has shape \[6\] and should have \[5\], one for each action"),
    (credit_of(torch.ones(4), FIVE), r"advantages has shape \[4\]"),
    (credit_of(FIVE[:, None], FIVE), r"advantages has shape \[5, 1\]"),
    (credit_of(FIVE, torch.ones(10)), r"targets has shape \[10\]"),
    (credit_of(FIVE, torch.tensor([1, 1, torch.nan, 1, 1])), "targets is nan at action 2 of 5"),
    (credit_of(FIVE / 0, FIVE), "advantages is inf at action 0 of 5; all must be finite$"),
    (credit_of(FIVE.long(), FIVE), "advantages is a tensor of torch.int64"),
    (credit_of(FIVE), "credit returned no targets"),
    (FIVE, "return nearstep's Credit"),
])  # fmt: skip
def test_every_result_of_an_advantage_is_checked(credit, said):
    with pytest.raises(TrainingError, match=rf"update 3: advantage Returns: .*{said}"):
        give_credit(Returns(credit), two_rows(), has_token_rewards=False)


def test_targets_may_be_missing_without_a_critic_and_bad_inputs_are_named():
    assert give_credit(Returns(Credit(FIVE), needs_critic=False), two_rows(), has_token_rewards=False).targets is None
    with pytest.raises(TrainingError, match="rewards or values that it was given are not all finite"):
        give_credit(GAE(), two_rows(values=FIVE * torch.nan), has_token_rewards=False)


@dataclass(frozen=True)
class Region:
    given: torch.Tensor
    top_k: int = 0

    def weight(self, now, old, advantages, rows):
        return self.given


@dataclass(frozen=True)
class Weights(TokenMean):
    given: torch.Tensor

    def weights(self, action_counts):
        return self.given


FOUR, TRUE = torch.ones(4), torch.ones(4, dtype=torch.bool)


@pytest.mark.parametrize(("mask", "weights", "said"), [
    (TRUE, FOUR, "trust region Region on a micro-batch of this run: weight returned a tensor of torch.bool"),
    (FOUR[:1], FOUR, r"trust region Region .* weight has shape \[1\] and should have \[4\]"),
    (FOUR, FOUR / 0, "loss aggregation Weights .* weights is inf at action 0 of 4"),
    (FOUR, -2 * FOUR, "loss aggregation Weights .* weights is -2 at action 0 of 4"),
    (FOUR, FOUR[:1], r"loss aggregation Weights .* weights has shape \[1\]"),
])  # fmt: skip
def test_every_mask_and_every_weight_is_checked(mask, weights, said):
    terms = PolicyTerms(Region(mask), None, "token", Weights(weights), None, 0.0)
    with pytest.raises(TrainingError, match=said):
        policy_objective(experience(), ActionLogprobs(-FOUR, FOUR), terms, first=True)


def test_every_divisor_is_checked(tmp_path):
    recipe = small_recipe(tmp_path)
    _, rollout, scores = play(recipe)
    wrong = dataclasses.replace(recipe, loss_aggregation=HalfDivisor(0))
    with pytest.raises(TrainingError, match=r"HalfDivisor: divisor for \d+ tokens in 8 rows is 0; it must be above 0"):
        update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), wrong)
