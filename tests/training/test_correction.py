"""Corrections and anchors in a run: where they act, what is measured of them, and that no split changes them."""

import dataclasses
import warnings
from dataclasses import dataclass
from math import exp, log

import pytest
import torch

from nearstep import ConfigError, PPOConfig
from nearstep.algorithm.correction import Correction, Corrections
from nearstep.algorithm.trust_regions import ActionRows
from nearstep.assembly.axes import correction
from nearstep.common.errors import TrainingError
from nearstep.metrics import Metrics
from nearstep.models.forward.action_logprobs import ActionLogprobs
from nearstep.models.forward.forward import rollout_logprobs
from nearstep.training.experience import describe, make_experience
from nearstep.training.mismatch import importance_metrics, mismatch_metrics
from nearstep.training.objectives import PolicyTerms, policy_objective
from nearstep.training.row_trace import RowTracer
from nearstep.training.state import State
from nearstep.training.update import update
from tests.lanes import slow
from tests.training.runs import play, settings, small_recipe

RECOMPUTED = {"anchor": "recomputed"}


class SquareRoot:
    def importance(self, trainer, engine, rows):
        return ((trainer - engine) / 2).exp()


def test_what_is_measured_of_a_mismatch_by_hand():
    """Rows of 2 and 1 tokens with ratios 3, 0.8 and 0.25."""
    ratios, counts = (3.0, 0.8, 0.25), torch.tensor([2, 1])
    engine = torch.tensor([-2.0, -1.0, -3.0], dtype=torch.float64)
    trainer = engine + torch.tensor(ratios, dtype=torch.float64).log()
    k3 = [ratio - 1 - log(ratio) for ratio in ratios]
    assert Metrics(mismatch_metrics(trainer, engine, counts)).numbers() == pytest.approx({
        "policy/mismatch_kl": sum(k3) / 3,
        "policy/mismatch_kl_worst": max((k3[0] + k3[1]) / 2, k3[2]),
        "policy/mismatch_far": 2 / 3,
        "policy/mismatch_ess": 4.05**2 / (3 * (9 + 0.64 + 0.0625)),
        "policy/importance_avg": 4.05 / 3,
        "policy/importance_max": 3,
    })  # fmt: skip
    rows = ActionRows(counts, torch.zeros(2, dtype=torch.long))

    def of(rule):
        return Metrics(
            importance_metrics(rule, rule.importance(trainer, engine, rows), trainer, engine, rows)
        ).numbers()

    assert of(Corrections()) == {}
    assert of(Correction(high=2.0)) == pytest.approx(
        {"policy/importance_cut": 1 / 3, "policy/importance_ess": 3.05**2 / (3 * (4 + 0.64 + 0.0625))}
    )
    # Both rows have the weight of the row, 2.4 and 0.25; none is beyond a limit.
    assert of(Correction("row", high=2.5))["policy/importance_cut"] == 0
    assert of(Correction("row", "reject", high=2.0)) == pytest.approx(
        {"policy/importance_cut": 2 / 3, "policy/importance_ess": 1 / 3}
    )
    # A rule of the user's is held against the ratio of each token, and rounding is no limit: 3^½, 0.8^½, 0.25^½.
    assert of(SquareRoot())["policy/importance_cut"] == 1
    trainer = engine + 1e-6
    assert of(SquareRoot())["policy/importance_cut"] == 0


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"correction": "tis"}, Correction("token", "truncate", high=2.0)),
        ({"correction": "tis", "correction_high": 5.0, "correction_low": 0.2}, Correction(low=0.2, high=5.0)),
        ({"correction": "row_tis"}, Correction("row", "truncate", high=2.0)),
        ({"correction": "icepop"}, Correction("token", "mask", low=0.5, high=5.0)),
        ({"correction": "mis"}, Correction("row", "mask", high=3.0)),
        ({"correction": "geo_mask"}, Correction("row_mean", "reject", low=0.99, high=1.01)),
        (
            {"correction": "seq_mask_tis", "correction_low": 0.9},
            Corrections((Correction("row_mean", "reject", low=0.9, high=1.01), Correction())),
        ),
        ({"correction": "none"}, Corrections()),
        ({}, Corrections()),
        (
            {
                "correction_level": "row",
                "correction_action": "mask",
                "correction_measure": "k3",
                "correction_high": 1.0,
            },
            Correction("row", "mask", "k3", high=1.0),
        ),
        # The names of before.
        ({"importance_cap": 1.2}, Correction(high=1.2)),
        ({"importance_cap": 1.2, "importance_floor": 0.9}, Correction(low=0.9, high=1.2)),
        ({"importance_floor": 0.9, "importance_rule": "mask"}, Correction(action="mask", low=0.9)),
        ({"correction_veto": True}, Corrections((Correction("row", "reject", "largest", 1e-4, 100.0),))),
        (
            {"correction_veto": True, "correction": "tis"},
            Corrections((Correction("row", "reject", "largest", 1e-4, 100.0), Correction(high=2.0))),
        ),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:importance_")
def test_settings_and_what_they_mean(given, rule):
    assert correction(PPOConfig(**RECOMPUTED, **given)) == rule


def test_other_libraries_names_of_schemes():
    with pytest.warns(UserWarning, match="correction seq-mask-tis is called seq_mask_tis here"):
        assert PPOConfig(anchor="recomputed", correction="seq-mask-tis").correction == "seq_mask_tis"
    with pytest.warns(UserWarning, match="correction_action clamp is called truncate here"):
        config = PPOConfig(anchor="recomputed", correction_action="clamp", correction_low=0.5)
    assert config.correction_action == "truncate"


def drifting(recipe, spread=0.3, age=0):
    """A rollout whose log-probs are not quite the trainer's, and its scores."""
    _, rollout, scores = play(recipe)
    draws = torch.Generator().manual_seed(3)
    noise = spread * torch.randn(len(rollout.logprobs), generator=draws)
    versions = rollout.policy_version - age * (torch.arange(len(rollout)) % 2)
    return dataclasses.replace(rollout, logprobs=rollout.logprobs + noise, policy_version=versions), scores


@pytest.mark.parametrize(
    ("scheme", "anchor"),
    [slow(("row_tis", "recomputed")), ("mis", "interpolated"), slow(("seq_mask_tis", "recomputed"))],
)
@pytest.mark.filterwarnings("ignore:anchor = interpolated")
def test_no_split_into_micro_batches_changes_a_gradient(tmp_path, scheme, anchor):
    found = []
    for rows in (8, 3):
        recipe = small_recipe(
            tmp_path / str(rows), dtype=torch.float64, anchor=anchor, correction=scheme, batch_size=8, optim="sgd",
            per_device_train_batch_size=rows, num_ppo_epochs=2, num_mini_batches=2, max_grad_norm=None,
            correction_low=0.9, correction_high=1.1,
        )  # fmt: skip
        rollout, scores = drifting(recipe, age=2)
        state = State(update=4)
        rollout = dataclasses.replace(rollout, policy_version=rollout.policy_version + 3)
        experience = make_experience(rollout, scores, recipe, state)
        metrics, _ = update(experience, recipe.schedule.phases(1), recipe)
        weights = torch.cat([each.detach().flatten() for each in recipe.models.policy.model.parameters()])
        found.append((weights, (describe(experience, scores, recipe) + metrics).numbers()))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-12, rtol=0)
    assert found[0][1] == pytest.approx(found[1][1])
    assert 0 < found[0][1]["policy/importance_cut"] < 1


def test_a_row_with_a_broken_token_is_left_out_whole(tmp_path):
    """correction_veto: the engine held one token for all but impossible."""
    recipe = small_recipe(tmp_path, **RECOMPUTED, correction_veto=True)
    rollout, scores = drifting(recipe, 0.0)
    logprobs = rollout.logprobs.clone()
    logprobs[0] -= 12.0
    experience = make_experience(dataclasses.replace(rollout, logprobs=logprobs), scores, recipe)
    first = int(rollout.action_counts[0])
    assert bool((experience.importance[:first] == 0).all())
    assert bool((experience.importance[first:] == 1).all())
    shown = describe(experience, scores, recipe).numbers()
    assert shown["policy/importance_cut"] == pytest.approx(first / len(logprobs))
    assert shown["policy/importance_max"] == pytest.approx(exp(12), rel=1e-4)


@pytest.mark.filterwarnings("ignore:anchor = interpolated")
def test_an_interpolated_anchor_moves_with_the_policy(tmp_path):
    """Rows of this update keep what the engine recorded; of those 2 updates older the anchor goes ⅔ of the way."""
    recipe = small_recipe(tmp_path, dtype=torch.float64, anchor="interpolated", correction="tis", correction_high=1.1)
    rollout, scores = drifting(recipe, 0.0, age=2)
    rollout = dataclasses.replace(rollout, policy_version=rollout.policy_version + 4)
    experience = make_experience(rollout, scores, recipe, State(update=5))
    shares = torch.tensor([0, 2 / 3]).double()[torch.arange(8) % 2].repeat_interleave(rollout.action_counts)
    torch.testing.assert_close(experience.anchor_share, shares)
    assert bool((experience.importance == 1).all())
    assert torch.equal(experience.old_logprobs, rollout.logprobs)

    moved = torch.linspace(-0.4, 0.4, len(rollout.logprobs), dtype=torch.float64)
    now = (rollout.logprobs + moved).requires_grad_()
    terms = PolicyTerms.of(recipe)
    loss, metrics = policy_objective(experience, ActionLogprobs(now, torch.zeros_like(moved)), terms, first=False)
    (gradient,) = torch.autograd.grad(loss, now)
    ratio, weight = ((1 - shares) * moved).exp(), (shares * moved).exp().clamp(max=1.1)
    inside = ~(((experience.advantages > 0) & (ratio > 1.2)) | ((experience.advantages < 0) & (ratio < 0.8)))
    torch.testing.assert_close(gradient, -weight * experience.advantages * ratio * inside, atol=1e-6, rtol=1e-6)
    numbers = metrics.numbers()
    assert numbers["val/ratio"] == pytest.approx(float(ratio.mean()))
    assert numbers["policy/approxkl_avg"] == pytest.approx(float(ratio.log().square().mean() / 2))
    assert numbers["policy/importance_cut"] == pytest.approx(float(((shares * moved).exp() > 1.1).double().mean()))
    half = experience.select(torch.tensor([3, 0]))
    assert half.anchor_share.tolist() == pytest.approx(
        [2 / 3] * rollout.action_counts[3] + [0] * rollout.action_counts[0]
    )
    traced = RowTracer.of(recipe).numbers(experience, ActionLogprobs(now.detach(), torch.zeros_like(moved)))
    torch.testing.assert_close(traced.old_logprob, rollout.logprobs + shares * moved)
    torch.testing.assert_close(traced.ratio, ratio)


@pytest.mark.filterwarnings("ignore:anchor = interpolated")
def test_where_all_rows_are_of_this_update_interpolated_is_sampled(tmp_path):
    found = []
    for anchor in ("sampled", "interpolated"):
        recipe = small_recipe(tmp_path / anchor, anchor=anchor)
        rollout, scores = drifting(recipe)
        metrics, _ = update(make_experience(rollout, scores, recipe), recipe.schedule.phases(1), recipe)
        weights = torch.cat([each.detach().flatten() for each in recipe.models.policy.model.parameters()])
        found.append((weights, metrics.numbers()))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_mismatch_is_measured_with_every_anchor_and_without_a_correction(tmp_path):
    """With anchor = sampled on the rows of the first minibatch, with recomputed on all."""
    names = {"policy/mismatch_kl", "policy/mismatch_kl_worst", "policy/mismatch_far", "policy/mismatch_ess",
             "policy/importance_avg", "policy/importance_max"}  # fmt: skip
    found = {}
    for anchor in ("sampled", "recomputed"):
        recipe = small_recipe(tmp_path / anchor, anchor=anchor, num_mini_batches=2)
        rollout, scores = drifting(recipe)
        now = rollout_logprobs(recipe.models.policy, rollout, recipe.sampling).sampled.detach()
        experience = make_experience(rollout, scores, recipe)
        metrics, _ = update(experience, recipe.schedule.phases(1), recipe)
        found[anchor] = (describe(experience, scores, recipe) + metrics).numbers()
        assert names <= set(found[anchor])
        assert not {"policy/importance_cut", "policy/importance_ess"} & set(found[anchor])
        gaps = now - rollout.logprobs
        if anchor == "recomputed":
            expected = float((gaps.expm1() - gaps).mean())
            assert found[anchor]["policy/mismatch_kl"] == pytest.approx(expected, rel=1e-4)
            assert found[anchor]["policy/importance_max"] == pytest.approx(float(gaps.exp().max()), rel=1e-4)
    assert found["sampled"]["policy/mismatch_kl"] != found["recomputed"]["policy/mismatch_kl"]


@dataclass(frozen=True)
class Root:
    """The root of each token's ratio."""

    def importance(self, trainer, engine, rows):
        return ((trainer - engine) / 2).exp()


@dataclass(frozen=True)
class Negative:
    def importance(self, trainer, engine, rows):
        return trainer - engine


def test_a_correction_of_ones_own(tmp_path):
    recipe = small_recipe(tmp_path, parts={"correction": Root()}, **RECOMPUTED)
    assert "correction is an object of your own: Root." in recipe.introduction
    rollout, scores = drifting(recipe)
    experience = make_experience(rollout, scores, recipe)
    torch.testing.assert_close(experience.importance, ((experience.old_logprobs - rollout.logprobs) / 2).exp())
    (tmp_path / "own.py").write_text(
        "from nearstep.algorithm.correction import Correction\nrule = Correction('row', 'mask', high=1.5)\n"
    )
    named = small_recipe(tmp_path / "b", correction=f"{tmp_path}/own.py:rule", **RECOMPUTED)
    assert named.correction == Correction("row", "mask", high=1.5)


def test_corrections_that_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="correction: with anchor = sampled the ratio is π/μ itself"):
        small_recipe(tmp_path, parts={"correction": Root()})
    with pytest.raises(ConfigError, match=r"correction Negative: importance is -0.5 at action 1 of 4; it is from 0 on"):
        small_recipe(tmp_path, parts={"correction": Negative()}, **RECOMPUTED)
    with pytest.raises(ConfigError, match=r"correction dict .a dict. has no `importance`"):
        small_recipe(tmp_path, parts={"correction": {}}, **RECOMPUTED)
    with pytest.raises(ConfigError, match=r"correction = icepop: Correction: low = 0.5 is above high = 0.1: give both"):
        small_recipe(tmp_path, correction="icepop", correction_high=0.1, **RECOMPUTED)
    with pytest.raises(ConfigError, match="an object was passed, and the settings say correction = tis"):
        small_recipe(tmp_path, parts={"correction": Root()}, correction="tis", **RECOMPUTED)


def test_a_correction_is_checked_on_every_batch(tmp_path):
    recipe = dataclasses.replace(small_recipe(tmp_path, **RECOMPUTED), correction=Negative())
    rollout, scores = drifting(recipe)
    with pytest.raises(TrainingError, match=r"correction Negative: importance is -.* it is from 0 on"):
        make_experience(rollout, scores, recipe)


def test_settings_without_effect_are_told():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        settings("x", correction_veto=True, anchor="sampled")
    assert any("correction_veto has no effect with anchor = sampled" in str(each.message) for each in told)
