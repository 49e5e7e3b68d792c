"""Rules on what is sampled and what is trained: one policy, one distribution, one reference at the start."""

import math

import numpy as np

from nearstep.reports.health.evidence import RunEvidence, Series
from nearstep.reports.health.rule import Level, Rule, Seen, Thresholds

MISMATCH_LIMITS = {"warn": 5e-3, "error": 3e-2}  # nats per token between engine and trainer


def _by_age(evidence: RunEvidence, name: str, *, old: bool) -> Series:
    """A metric in the updates whose rows are of older weights (max_staleness), or in all others."""
    series, ages = evidence.series(name), evidence.series("staleness/age")
    kept = np.isin(series.updates, ages.updates[ages.values > 0], invert=not old)
    return Series(series.updates[kept], series.values[kept])


def _random_forward(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    gap = evidence.series("policy/repeat_gap")
    found = gap.values > limits["gap"]
    if not found.any():
        return None
    update = gap.first_where(found)
    text = f"two passes over the same rows, with the same weights, gave probabilities {gap.values.max():.2g} apart"
    return Seen("error", update, text)


def _is_greedy(evidence: RunEvidence) -> bool:
    """Whether the run asks for the most probable tokens: then nothing follows from how probable they are."""
    return evidence.settings.get("do_sample") is False


def _sampled_otherwise(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    gap, error, entropy = (
        _by_age(evidence, name, old=False)
        for name in ("policy/surprise_gap", "policy/surprise_error", "policy/entropy_avg")
    )
    if not len(gap) or len(gap) != len(error) or len(gap) != len(entropy) or _is_greedy(evidence):
        return None
    mean, chance = gap.values.mean(), math.sqrt((error.values**2).sum()) / len(gap)
    least = max(limits["nats"], limits["share"] * float(np.median(entropy.values)))
    if abs(mean) < least or abs(mean) < limits["errors"] * chance:
        return None
    hotter = "less likely: the engine samples hotter, or from other weights" if mean > 0 else "likelier: the engine "
    hotter += "" if mean > 0 else "samples colder or greedily, or leaves tokens out (top_p, top_k)"
    text = (
        f"sampled tokens are {abs(mean):.3g} nats {hotter} ({abs(mean) / max(chance, 1e-12):.0f} standard errors, mean "
        f"of {len(gap)} updates)"
    )
    return Seen("error", int(gap.updates[0]), text)


def _mismatch(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    kl = _by_age(evidence, "policy/mismatch_kl", old=False)
    worst = max(kl.start, kl.end)
    if not worst >= limits["warn"]:  # NaN where all rows are old
        return None
    level: Level = "error" if worst >= limits["error"] else "warn"
    gap = _by_age(evidence, "val/ratio_max_gap_first", old=False)
    text = f"before the first step of an update log-probs of engine and trainer differ by a KL of {worst:.2g} per token"
    if len(gap):
        text += f"; the largest |π/μ − 1| is {np.median(gap.values):.2g} in the middle update"
    worst_row = _by_age(evidence, "policy/mismatch_kl_worst", old=False)
    if len(worst_row):
        text += f", the KL of its worst row {np.median(worst_row.values):.2g} per token"
    return Seen(level, kl.first_where(kl.values >= limits["warn"]), text)


def _too_old(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    kl, ages = _by_age(evidence, "policy/mismatch_kl", old=True), _by_age(evidence, "staleness/age", old=True)
    worst = max(kl.start, kl.end)
    if not worst >= limits["warn"]:  # NaN where no row is old
        return None
    level: Level = "error" if worst >= limits["error"] else "warn"
    text = (
        f"the policy is a KL of {worst:.2g} per token from the weights that sampled, which are "
        f"{np.median(ages.values):.2g} updates older in the middle update, before the first step of an update"
    )
    return Seen(level, kl.first_where(kl.values >= limits["warn"]), text)


def _at_start(series: Series) -> float | None:
    """The value of update 1, before which nothing was learned; None for a run that goes on from elsewhere."""
    return float(series.values[0]) if len(series) and series.updates[0] == 1 else None


def _wrong_reference(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    kl = _at_start(evidence.per_token("objective/kl_k3"))
    if kl is None or kl < limits["warn"]:
        return None
    level: Level = "error" if kl >= limits["error"] else "warn"
    text = f"the KL to the reference is {kl:.2g} per token in update 1, before anything was learned"
    return Seen(level, 1, text)


def _negative_kl(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    kl, cost = evidence.series("objective/kl"), evidence.series("objective/non_score_reward_std")
    coef = evidence.series("objective/kl_coef")
    if len(kl) < 3 or len(kl) != len(cost) or len(kl) != len(coef) or evidence.settings.get("kl_estimator") != "k1":
        return None
    if _is_greedy(evidence):
        return None
    weight = np.where(coef.values > 0, coef.values, np.nan)
    errors = np.nan_to_num(cost.values / weight) / math.sqrt(evidence.rows)
    last = slice(-kl.ends, None)
    mean, error = kl.values[last].mean(), math.sqrt((errors[last] ** 2).mean() / kl.ends)
    if mean > -limits["nats"] or mean > -limits["errors"] * error:
        return None
    text = f"objective/kl is {mean:.2g} over the last {kl.ends} updates, ± {error:.2g} by chance"
    return Seen("error", kl.first_where(kl.values < 0), text)


RULES = (
    Rule(
        name="random_forward",
        title="The policy's forward pass is random: dropout is on, or another source of noise",
        watches=("policy/repeat_gap",),
        limits={"gap": 1e-3},
        when="two passes over the same rows differ by more than {gap} in a probability: error",
        look_at="modules of your own in the policy, hooks, and functions that drop out whatever the mode (F.dropout "
        "with "
        "training=True); val/ratio_max_gap_first, which should be 0",
        next="switch the noise off. nearstep puts the model into evaluation mode for its passes, so what is left asks "
        "no "
        "mode",
        check=_random_forward,
    ),
    Rule(
        name="sampled_otherwise",
        title="The engine samples from another distribution than the one that is trained",
        watches=("policy/surprise_gap", "policy/surprise_error", "policy/entropy_avg"),
        limits={"nats": 0.03, "share": 0.15, "errors": 6},
        when="the mean of policy/surprise_gap, of updates whose rows are of no older weights, is beyond {nats} nats, "
        "{share} of the entropy and {errors} standard errors: error; not with do_sample = false",
        look_at="temperature, top_p and top_k of the engine; whether its weights are those of this update; penalties "
        "(repetition, presence) and a generation config of its own",
        next="give engine and trainer the same temperature, top_p and top_k, and take every penalty away; then start "
        "anew",
        check=_sampled_otherwise,
        follows=("random_forward",),
    ),
    Rule(
        name="mismatch",
        title="Engine and trainer disagree on log-probs",
        watches=("policy/mismatch_kl", "policy/mismatch_kl_worst", "val/ratio_max_gap_first"),
        limits=MISMATCH_LIMITS,
        when="policy/mismatch_kl, at the beginning or the end of the run, is at least {warn}: warn; {error}: error. "
        "Updates whose rows are of older weights (max_staleness) do not count: there `too_old` looks",
        look_at="temperature, top_p and top_k on both sides; whether the engine loads the weights of every update; "
        "types "
        "of weights (bfloat16 costs about 1e-4); adapters that only one side has",
        next="mend the cause; until then anchor = recomputed with correction = tis keeps the update sound",
        check=_mismatch,
        follows=("random_forward", "sampled_otherwise", "steps_too_large"),
    ),
    Rule(
        name="too_old",
        title="Rows are too old for the steps that are taken",
        watches=("policy/mismatch_kl", "staleness/age"),
        limits={"warn": 0.05, "error": 0.3},
        when="with max_staleness: policy/mismatch_kl of updates whose rows are of older weights, at the beginning or "
        "the end, is at least {warn}: warn; {error}: error",
        look_at="staleness/age_max; policy/approxkl_avg: how far one update goes; update 1, whose rows are not old: "
        "policy/mismatch_kl is that of the engine alone there",
        next="lower max_staleness (1 is enough to generate beside an update) or learning_rate, or take anchor = "
        "interpolated",
        check=_too_old,
        follows=("random_forward", "sampled_otherwise", "mismatch", "steps_too_large"),
    ),
    Rule(
        name="wrong_reference",
        title="The reference is not the policy as it starts",
        watches=("objective/kl_k3", "response/length_mean"),
        limits={"warn": 1e-3, "error": 5e-3},
        when="objective/kl_k3 per token is at least {warn} in update 1: warn; {error}: error",
        look_at="ref_model and ref_model_path: is it the model that the policy starts from? With adapters: does it "
        "have the "
        "ones that the policy begins with?",
        next="leave the reference out (it is then a copy of the policy), or name the policy's own folder. If the "
        "policy "
        "goes on from an earlier PPO run on purpose, this is as it should be",
        check=_wrong_reference,
        follows=("random_forward", "sampled_otherwise"),
    ),
    Rule(
        name="negative_kl",
        title="The KL to the reference is negative: what is sampled is not what the policy says",
        watches=("objective/kl", "objective/non_score_reward_std", "objective/kl_coef"),
        limits={"nats": 0.2, "errors": 5},
        when="the mean of objective/kl (k1) over the last updates is below −{nats} and −{errors} standard errors: "
        "error; not with do_sample = false",
        look_at="sampling: temperature, top_p, top_k, a minimum length, a generation config with penalties. k1 may be "
        "negative for a row, not in the mean",
        next="sample from the plain policy; policy/surprise_gap and kl_exact_rows tell more",
        check=_negative_kl,
        follows=("sampled_otherwise", "mismatch", "wrong_reference"),
    ),
)
