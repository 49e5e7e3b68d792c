"""The rules of health: each speaks of its illness and of no healthy run, and the cause comes before what follows."""

import math
from pathlib import Path

import numpy as np
import pytest

from nearstep.reports.health.document import document
from nearstep.reports.health.evidence import RunEvidence, Series
from nearstep.reports.health.verdict import RULES, judge
from nearstep.reports.health.watch import HealthWatch
from nearstep.reports.metrics import MEANINGS

PAGE = Path(__file__).parents[2] / "docs" / "health.md"
SETTINGS = {"stop_token": "auto", "kl_estimator": "k1", "response_length": 48, "entropy_coef": 0.0, "kl_in": "reward"}


def healthy(updates: int = 16, seed: int = 0) -> list[dict]:
    """Curves like the demo's: a score that saturates, a KL that grows, noise on everything."""
    draw, lines = np.random.default_rng(seed), []
    for update in range(1, updates + 1):
        grown = 1 - math.exp(-update / 6)
        length = 13 + 8 * grown + draw.normal(0, 0.5)
        kl = 4 * grown * (update > 1) + draw.normal(0, 0.1)
        lines.append({
            "update": update, "episode": 64 * update, "epoch": update / 30, "lr": 5e-4, "vf_lr": 5e-4,
            "objective/scores": 1.3 + 1.3 * grown + draw.normal(0, 0.1),
            "objective/scores_raw": 1.3 + 1.3 * grown + draw.normal(0, 0.1),
            "objective/rlhf_reward": 1.3 + 1.1 * grown + draw.normal(0, 0.1),
            "objective/scores_std": 0.5 + abs(draw.normal(0, 0.15)), "objective/kl": kl,
            "objective/kl_k3": abs(kl) if update > 1 else 1e-12, "objective/kl_coef": 0.05,
            "objective/non_score_reward_std": 0.08 * grown, "policy/approxkl_avg": 0.02 / update,
            "policy/clipfrac_avg": 0.06 / update, "policy/mismatch_kl": 1e-13, "policy/repeat_gap": 0.0,
            "policy/surprise_gap": draw.normal(0, 0.03), "policy/surprise_error": 0.03,
            "policy/entropy_avg": 0.34 - 0.2 * grown + draw.normal(0, 0.01), "val/ratio": 1 + draw.normal(0, 0.01),
            "val/effective_sample_size": 0.6 if update == 1 else 0.98, "val/ratio_max_gap_first": 1e-6,
            "val/num_eos_tokens": min(1.0, 0.98 + draw.normal(0, 0.02)), "response/truncated": 0.01,
            "response/length_mean": length, "response/repeated": 0.005, "response/duplicates": 0.0,
            "objective/score_length_correlation": 0.7 - 0.3 * grown, "objective/score_token_correlation": 0.6,
            "objective/own_over_cut": 0.8, "objective/own_over_shuffled": 0.7,
            "val/explained_variance": 0.6 * grown + draw.normal(0, 0.2), "val/value_bias": draw.normal(0, 0.1),
            "val/return_std": 0.5, "optimizer/steps": 4 * update, "optimizer/skipped_steps": 0,
            "value/optimizer_steps": 4 * update,
        })  # fmt: skip
    return lines


def change(**of_update):
    """The healthy run with metrics put to a number, or to a function of the update."""
    names = {name.replace("__", "/"): value for name, value in of_update.items()}
    return [
        {**line, **{name: value(line["update"]) if callable(value) else value for name, value in names.items()}}
        for line in healthy()
    ]


# For each rule a run of which it speaks, and the settings that this takes.
ILL = {
    "random_forward": (change(policy__repeat_gap=0.3), {}),
    "sampled_otherwise": (change(policy__surprise_gap=0.2), {}),
    "mismatch": (change(policy__mismatch_kl=0.05), {}),
    "too_old": (change(policy__mismatch_kl=lambda update: 0.4 * (update > 1), staleness__age=lambda update: min(update - 1, 2)), {}),  # noqa: E501
    "wrong_reference": (change(objective__kl_k3=20.0), {}),
    "negative_kl": (change(objective__kl=-3.0), {}),
    "broken_numbers": ([*healthy(), {"update": 17, "loss/policy_avg": None, "not_finite": {"loss/policy_avg": "nan"}}], {}),  # noqa: E501
    "steps_too_large": (change(policy__approxkl_avg=lambda update: 3.0 if update == 2 else 0.01), {}),
    "too_many_masked": (change(policy__clipfrac_avg=0.7), {}),
    "small_sample": (change(val__effective_sample_size=0.05), {}),
    "does_not_move": (change(lr=0.0), {}),
    "kl_high": (change(objective__kl_k3=lambda update: 10.0 * (update - 1), objective__scores_raw=1.3), {}),
    "negative_weight": (healthy(), {"reward_weights": [-1.0]}),
    "inverted": (change(objective__own_over_cut=0.2, objective__own_over_shuffled=0.3), {}),
    "no_spread": (change(objective__scores_std=0.0), {}),
    "nothing_kept": (change(gate__empty=0.9, gate__scores_std=0.4), {"gate_fill": "refill"}),
    "entropy_bonus": (
        change(policy__entropy_avg=lambda update: 0.2 + update / 10, objective__scores_raw=lambda update: -update / 10),
        {"entropy_coef": 5.0},
    ),
    "penalty_decides": (
        change(objective__non_score_reward_std=2.0, objective__scores_raw=lambda update: 1.3 + 0.01 * (-1) ** update,
               objective__kl_k3=0.001), {},
    ),
    "against_the_reward": (change(objective__scores_raw=lambda update: 1.3 - 0.1 * update), {}),
    "reward_hacked": (change(response__duplicates=lambda update: min(0.9, update / 12)), {}),
    "does_not_rise": ([{**line, "objective/rlhf_reward": 1.0 + 0.1 * math.sin(line["update"])} for line in healthy(24)], {}),  # noqa: E501
    "never_ends": (change(val__num_eos_tokens=0.0), {}),
    "endings_lost": (change(val__num_eos_tokens=lambda update: max(0.02, 1.1 - update / 12), objective__scores_raw=1.3), {}),  # noqa: E501
    "cut_off": (change(response__truncated=0.8), {}),
    "empty": (change(response__length_mean=1.0, objective__kl_k3=0.0), {}),
    "length_drift": (change(response__length_mean=lambda update: 4.0 * update), {}),
    "entropy_gone": (change(policy__entropy_avg=lambda update: 0.3 * 0.6**update), {}),
    "entropy_explodes": (change(policy__entropy_avg=lambda update: 0.3 + 0.2 * update), {}),
    "all_alike": (change(response__duplicates=lambda update: 0.35 * (update > 6)), {}),
    "critic_frozen": (change(vf_lr=0.0), {}),
    "critic_misleads": (change(val__explained_variance=-0.8), {}),
    "values_off": (change(val__value_bias=-1.5), {}),
    "out_of_range": (change(val__target_out_of_range=0.05), {"value_head": "bounded"}),
}  # fmt: skip


@pytest.mark.parametrize("updates", [1, 2, 3, 5, 10, 40, 400])
def test_healthy_runs_are_told_healthy(updates):
    for seed in range(5):
        verdict = judge(RunEvidence.of(healthy(updates, seed), SETTINGS))
        told = [(alert.rule.name, alert.seen.text) for alert in verdict.alerts if alert.seen.level != "info"]
        assert (verdict.state, told) == ("healthy", [])
        assert verdict.cause is None


def test_older_weights_are_no_mismatch_and_greedy_tokens_no_other_distribution():
    """With max_staleness what the newest weights sampled counts, and the rest is too old; with do_sample = false
    nothing follows."""
    older = {"staleness__age": lambda update: float(update > 1)}
    aged = change(policy__mismatch_kl=lambda update: 0.05 * (update > 1), **older)
    assert [alert.rule.name for alert in judge(RunEvidence.of(aged, SETTINGS)).alerts] == ["too_old"]
    at_once = change(policy__mismatch_kl=0.05, **older)
    assert "mismatch" in [alert.rule.name for alert in judge(RunEvidence.of(at_once, SETTINGS)).alerts]
    for ill in ("sampled_otherwise", "negative_kl"):
        found = judge(RunEvidence.of(ILL[ill][0], {**SETTINGS, "do_sample": False}))
        assert ill not in [alert.rule.name for alert in found.alerts]


@pytest.mark.parametrize("name", ILL)
def test_every_rule_speaks_of_its_illness(name):
    lines, settings = ILL[name]
    verdict = judge(RunEvidence.of(lines, SETTINGS | settings))
    alert = next(alert for alert in verdict.alerts if alert.rule.name == name)
    assert not alert.is_consequence
    if alert.seen.level == "error":
        assert (verdict.state, verdict.cause.rule.name) == ("ill", name)


def test_a_gate_may_keep_what_scores_alike_and_drop_much_where_copies_train():
    flat = {"objective__scores_std": 0.0, "gate__empty": 0.9}
    verdict = judge(RunEvidence.of(change(**flat, gate__scores_std=0.4), SETTINGS | {"gate_fill": "replace"}))
    assert list(verdict.alerts) == []
    told = judge(RunEvidence.of(change(**flat, gate__scores_std=0.0), SETTINGS)).alerts
    assert [(alert.rule.name, alert.is_consequence) for alert in told] == [("no_spread", False), ("nothing_kept", True)]


def test_lengths_that_a_loop_of_ones_own_drew_are_no_illness():
    cut = {"response__truncated": 1.0, "val__num_eos_tokens": 0.0}
    told = [
        alert.rule.name
        for alert in judge(
            RunEvidence.of(change(response__length_max=53, **cut), SETTINGS | {"response_length": 53})
        ).alerts
    ]
    assert told == ["never_ends", "cut_off"]
    drawn = change(response__length_max=12, **cut)
    assert judge(RunEvidence.of(drawn, SETTINGS | {"response_length": 53})).state == "healthy"
    both = SETTINGS | {"response_length": 53, "max_length": 64}  # a long prompt leaves less
    assert "never_ends" in [alert.rule.name for alert in judge(RunEvidence.of(drawn, both)).alerts]


def test_what_older_weights_sampled_is_no_disagreement_of_engine_and_trainer():
    aged = {"staleness__age": lambda update: update - 1.0, "policy__surprise_gap": lambda update: 0.2 * (update > 1)}
    modest = change(policy__mismatch_kl=lambda update: 0.04 * (update > 1), **aged)
    assert judge(RunEvidence.of(modest, SETTINGS)).state == "healthy"
    both = judge(RunEvidence.of(change(policy__mismatch_kl=0.4, **aged), SETTINGS)).alerts
    assert [(alert.rule.name, alert.is_consequence) for alert in both][:2] == [("mismatch", False), ("too_old", True)]
    assert "a KL of 0.4 per token" in both[1].seen.text
    assert "which are 8 updates older" in both[1].seen.text


def causes(lines, **settings):
    """The rules that speak and follow from nothing else, mere remarks left out."""
    alerts = judge(RunEvidence.of(lines, SETTINGS | settings)).alerts
    return [alert.rule.name for alert in alerts if not alert.is_consequence and alert.seen.level != "info"]


def probed(cut, shuffled, swapped, ended=0.98):
    return change(
        objective__own_over_cut=cut, objective__own_over_shuffled=shuffled, objective__own_over_swapped=swapped,
        val__num_eos_tokens=ended, response__truncated=1 - ended,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.2, 0.3, 0.5), ["inverted"]),  # it does not read the prompt
        ((0.2, 0.5, 0.1), ["inverted"]),  # a bag of facts, upside down: the order of words is nothing to it
        ((0.5, 0.2, 0.0), ["inverted"]),
        ((0.2, 0.5, 0.5), []),  # it likes short answers
        ((0.2, 0.3, 0.9), []),  # it reads the prompt, and rightly
        ((0.7, 0.5, 0.1), []),
        ((0.2, 0.5, 0.9), []),
        ((0.2, 0.3, 0.5, 0.1), ["cut_off"]),  # stumps are no whole answers
        ((0.2, 0.3, 0.1, 0.1), ["inverted"]),
    ],
)
def test_a_reward_is_upside_down_by_two_kinds_of_damage(shares, expected):
    assert causes(probed(*shares)) == expected


def test_an_entropy_bonus_is_the_cause_where_it_came_first():
    far = {"policy__approxkl_avg": lambda update: 0.05 * update}
    rising = change(policy__entropy_avg=lambda update: 0.3 * 1.3 ** (update - 1), **far)
    assert causes(rising, entropy_coef=5.0) == ["entropy_bonus"]
    assert causes(rising)[0] == "steps_too_large"
    # One update that makes the policy random was too large, whatever bonus there is.
    at_once = change(policy__entropy_avg=lambda update: 0.3 if update == 1 else 4.0, **far)
    assert causes(at_once, entropy_coef=0.01) == ["steps_too_large"]


def test_steps_that_are_too_large_come_before_responses_that_do_not_end():
    """A learning rate of 1.0 wrecks the policy in update 1: its responses no longer end, and that is no cause."""
    lines = change(policy__approxkl_avg=3.0, val__num_eos_tokens=0.0)
    assert judge(RunEvidence.of(lines, SETTINGS)).cause.rule.name == "steps_too_large"
    assert judge(RunEvidence.of(change(val__num_eos_tokens=0.0), SETTINGS)).cause.rule.name == "never_ends"


def test_updates_without_a_difference_at_the_start_are_told_and_not_at_the_end():
    at_first = change(objective__scores_std=lambda update: 0.3 * (update > 9 or update % 2))
    assert causes(at_first) == ["no_spread"]
    once = change(objective__scores_std=lambda update: 0.3 * (update != 3))
    assert causes(once) == []
    text = judge(RunEvidence.of(at_first, SETTINGS)).cause.seen.text
    assert text.startswith("in 4 of the first 8 updates all scores are alike")


def test_answers_cut_off_at_first_alone_are_a_remark():
    lines = change(response__truncated=lambda update: max(0.0, 0.9 - update / 10))
    verdict = judge(RunEvidence.of(lines, SETTINGS))
    assert verdict.state == "healthy"
    assert [(alert.rule.name, alert.seen.level) for alert in verdict.alerts] == [("cut_off", "info")]


def test_there_is_a_case_for_every_rule():
    assert sorted(ILL) == sorted(rule.name for rule in RULES)


def test_nothing_is_said_of_a_run_that_logged_nothing():
    verdict = judge(RunEvidence.of([], {}))
    assert (verdict.state, verdict.cause, verdict.record()["alerts"]) == ("unknown", None, [])


def test_the_cause_comes_before_what_follows_from_it():
    # A rate that is far too high: the policy collapses, and every curve with it.
    lines = change(
        policy__approxkl_avg=lambda update: 600.0 / update**3, objective__kl_k3=lambda update: 500.0 * (update > 1),
        response__truncated=lambda update: float(update > 1), val__num_eos_tokens=lambda update: float(update == 1),
        policy__entropy_avg=lambda update: 0.3 if update == 1 else 0.001,
        objective__scores_raw=lambda update: 1.3 if update < 3 else -1.7,
    )  # fmt: skip
    verdict = judge(RunEvidence.of(lines, SETTINGS))
    assert verdict.cause.rule.name == "steps_too_large"
    assert verdict.cause.seen.update == 1
    followers = {alert.rule.name for alert in verdict.alerts[1:]}
    assert {"kl_high", "cut_off", "endings_lost"} <= followers
    assert all("steps_too_large" in alert.follows_from for alert in verdict.alerts[1:])


def test_a_run_without_a_stop_token_on_purpose_need_not_end():
    lines = change(val__num_eos_tokens=0.0, response__truncated=1.0)
    settings = SETTINGS | {"stop_token": None, "stop_token_id": None}
    assert judge(RunEvidence.of(lines, settings)).state == "healthy"


def test_a_held_out_judge_that_falls_while_the_score_rises_is_hacking():
    judged = [
        {"update": update, "eval/objective/scores_raw": value} for update, value in ((4, 0.9), (8, 1.2), (16, 0.1))
    ]
    verdict = judge(RunEvidence.of([*healthy(), *judged], SETTINGS))
    assert verdict.cause.rule.name == "reward_hacked"
    assert "eval/objective/scores_raw falls from 1.2 to 0.1" in verdict.cause.seen.text


def test_the_trend_is_mann_and_kendalls():
    def trend(*values):
        return Series(np.arange(1, len(values) + 1), np.array(values, dtype=float)).trend()

    # All 10 pairs rise: S = 10, variance 5·4·15 / 18, one taken off S for continuity.
    assert trend(1, 2, 3, 4, 9) == pytest.approx(9 / math.sqrt(300 / 18))
    assert trend(9, 4, 3, 2, 1) == pytest.approx(-9 / math.sqrt(300 / 18))
    # One pair is tied: S = 9, and the variance loses 2·1·9 / 18.
    assert trend(1, 2, 2, 4, 9) == pytest.approx(8 / math.sqrt((300 - 18) / 18))
    assert trend(2, 2, 2, 2, 2) == 0
    assert trend(1, 2, 3, 4) == 0  # too few
    draws = np.random.default_rng(0).normal(size=(200, 1000))
    assert max(abs(trend(*row)) for row in draws) < 4  # noise has none, however long


def test_an_alert_is_told_once_and_again_where_it_becomes_worse(tmp_path):
    watch, told = HealthWatch(SETTINGS), []
    lines = change(response__truncated=lambda update: 0.0 if update < 4 else 0.5 if update < 12 else 0.9)
    for line in lines:
        told += [(line["update"], alert.seen.level, alert.rule.name) for alert in watch.add(line)]
    assert [each[1:] for each in told] == [("warn", "cut_off"), ("error", "cut_off")]
    assert watch.level == 2


def test_a_run_that_goes_on_knows_what_it_was_and_what_was_told(tmp_path):
    import json

    lines = change(policy__repeat_gap=lambda update: 0.3 if update == 1 else 0.0)
    first = HealthWatch(SETTINGS)
    alerts = [alert.record(line["update"]) for line in lines[:8] for alert in first.add(line)]
    for name, records in (("metrics.jsonl", lines[:8]), ("alerts.jsonl", alerts)):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    second = HealthWatch(SETTINGS)
    second.recall(lines[:8], tmp_path, 8)
    assert second.level == 2
    assert [alert for line in lines[8:] for alert in second.add(line)] == []
    assert second.level == 2


def test_the_page_is_what_the_rules_say():
    assert PAGE.read_text(encoding="utf-8") == document(), (
        "docs/health.md is old: python -m nearstep.reports.health.document > docs/health.md"
    )


def test_rules_name_metrics_and_rules_that_there_are():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule.watches) <= set(MEANINGS), rule.name
        assert set(rule.follows) <= set(names) - {rule.name}, rule.name
        assert rule.condition  # every limit in braces is there
        for limit in rule.limits:
            assert f"{{{limit}}}" in rule.when, f"{rule.name}: {limit} is not told"
