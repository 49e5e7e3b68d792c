"""Rules on the reward: whether it teaches anything, whether the policy follows it, and what it really asks for."""

import math

import numpy as np

from nearstep.reports.health.evidence import RunEvidence, Series, has_no_stop
from nearstep.reports.health.rule import Level, Rule, Seen, Thresholds


def score_change(evidence: RunEvidence, name: str = "objective/scores_raw") -> tuple[Series, float]:
    """A score, and how far it has come from start to end, in standard deviations between episodes."""
    score, spread = evidence.series(name), evidence.series("objective/scores_std")
    if len(score) < 5 or not len(spread):
        return score, 0.0
    return score, (score.end - score.start) / max(float(np.median(spread.values)), 1e-9)


def _no_spread(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    spread, score = evidence.series("objective/scores_std"), evidence.series("objective/scores")
    if len(of_all := evidence.series("gate/scores_std")):
        spread = of_all  # a gate may well keep what scores alike
    if len(spread) < 3:
        return None
    last = spread.values[-max(3, spread.ends) :]
    scale = max(float(np.abs(score.values).max()), 1e-9) if len(score) else 1.0
    flat = spread.values <= limits["share"] * scale
    if flat.all():
        text = f"all scores of an update are alike, in every one of {len(spread)} updates"
        return Seen("error", int(spread.updates[0]), text)
    early = flat[: len(flat) // 2]  # later on all may be learned
    if len(flat) >= limits["updates"] and early.mean() >= limits["early"]:
        text = (
            f"in {early.sum()} of the first {len(early)} updates all scores are alike, and nothing was learned from "
            "them: few responses get another score than the rest"
        )
        return Seen("warn", spread.first_where(flat), text)
    if (last > limits["share"] * scale).any():
        return None
    text = (
        f"all scores are alike in the last {len(last)} updates, at {score.end:.3g}: nothing is left to learn from them"
    )
    return Seen("warn", spread.first_where(flat), text)


def _nothing_kept(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    empty = evidence.series("gate/empty")
    if len(empty) < 3:
        return None
    last = empty.values[-max(3, empty.ends) :]
    replaced = evidence.settings.get("gate_fill") == "replace"
    if (last < limits["share"]).any() or (replaced and (last < 1).any()):
        return None
    text = f"the gate has dropped {last.mean():.0%} of the batch in each of the last {len(last)} updates"
    return Seen("warn", empty.first_where(empty.values >= limits["share"]), text)


def _negative_weight(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    weights = evidence.settings.get("reward_weights")
    if (
        not isinstance(weights, list | tuple)
        or not weights
        or not all(isinstance(weight, int | float) and weight < 0 for weight in weights)
    ):
        return None
    return Seen("error", 1, f"reward_weights = {', '.join(f'{weight:g}' for weight in weights)}: none is above 0")


def _inverted(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    found = [evidence.series(f"objective/own_over_{damage}").values for damage in ("cut", "shuffled", "swapped")]
    shares = [float(values[0]) if len(values) else math.nan for values in found]
    told = ("they are cut in half", "their tokens are shuffled", "the answer to another prompt stands in their place")
    below = (limits["share"], limits["share"], limits["swapped"])
    preferred = [share < limit for share, limit in zip(shares, below, strict=True)]
    # A stump is no whole answer, and what a reward says of halves of it means nothing by itself.
    ended = evidence.series("val/num_eos_tokens")
    whole = has_no_stop(evidence) or not len(ended) or ended.values[0] >= limits["ended"]
    if sum(preferred) < 2 or any(share > limits["against"] for share in shares) or not (whole or preferred[2]):
        return None
    parts = [f"{1 - share:.0%} when {how}" for share, how, is_so in zip(shares, told, preferred, strict=True) if is_so]
    return Seen("error", 1, f"of the policy's first answers the reward prefers {', and '.join(parts)}")


def _against_the_reward(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    score, change = score_change(evidence)
    if change > -limits["deviations"] or score.trend() > -limits["trend"]:
        return None
    text = (
        f"the score falls from {score.start:.3g} to {score.end:.3g}, by {-change:.2g} standard deviations of an "
        "episode, "
        f"while steps stay small (policy/approxkl_avg {evidence.series('policy/approxkl_avg').end:.2g})"
    )
    return Seen("error", score.first_where(score.values <= (score.start + score.end) / 2), text)


def _does_not_rise(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    score, change = score_change(evidence, "objective/rlhf_reward")
    if len(score) < limits["updates"] or score.trend() > limits["trend"] or change > limits["deviations"]:
        return None
    if change < -limits["deviations"]:
        text = f"objective/rlhf_reward goes from {score.start:.3g} to {score.end:.3g}"
        return Seen("warn", int(score.updates[-1]), text)
    text = (
        f"objective/rlhf_reward stays at about {score.end:.3g} over {len(score)} updates (trend {score.trend():+.1f})"
    )
    return Seen("info", int(score.updates[-1]), text)


def _penalty_decides(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    cost, spread = evidence.series("objective/non_score_reward_std"), evidence.series("objective/scores_std")
    kl = evidence.per_token("objective/kl_k3")
    if len(cost) < 5 or len(cost) != len(spread) or not len(kl) or evidence.settings.get("kl_in") == "loss":
        return None
    share = Series(cost.updates, cost.values / np.maximum(spread.values, 1e-9))
    after = share.values[1:]  # in update 1 the policy is its reference
    _, change = score_change(evidence)
    if np.median(after) < limits["share"] or kl.end > limits["kl"] or change > limits["deviations"]:
        return None
    text = (
        f"over episodes the KL penalty varies {np.median(after):.2g} times as much as the score, at a KL of "
        f"{kl.end:.2g} "
        f"per token (kl_coef {evidence.series('objective/kl_coef').end:.3g}); the score changes by {change:+.2g} "
        "standard "
        "deviations"
    )
    return Seen("error", int(share.updates[1]), text)


def _entropy_bonus(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    bonus, entropy = evidence.number("entropy_coef"), evidence.series("policy/entropy_avg")
    if bonus <= 0 or len(entropy) < 3 or entropy.end < limits["factor"] * entropy.start:
        return None
    high = entropy.first_where(entropy.values >= limits["factor"] * entropy.start)
    if (entropy.values[1:] >= limits["factor"] * entropy.values[:-1])[entropy.updates[1:] <= high].any():
        return None  # a bonus works from step to step; an update that does it at once was too large
    _, change = score_change(evidence)
    level: Level = "error" if change < limits["deviations"] else "warn"
    text = (
        f"with entropy_coef {bonus:g} the entropy per token goes from {entropy.start:.2g} to {entropy.end:.2g}, and "
        "the "
        f"score changes by {change:+.2g} standard deviations"
    )
    return Seen(level, high, text)


def _out_of_range(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    outside = evidence.series("val/target_out_of_range")
    if len(outside) < 2 or outside.end <= limits["share"]:
        return None
    text = f"{outside.end:.1%} of the returns lie outside value_min and value_max in {outside.last}"
    return Seen("warn", outside.first_where(outside.values > limits["share"]), text)


RULES = (
    Rule(
        name="negative_weight",
        title="The sign of the reward is swapped: its weight is negative",
        watches=("objective/scores",),
        limits={},
        when="no entry of reward_weights is above 0: error",
        look_at="reward_weights; rewards/… of the parts, which the policy is taught to lower",
        next="give what is wanted a positive weight; a penalty is a part beside it",
        check=_negative_weight,
    ),
    Rule(
        name="inverted",
        title="The sign of the reward is swapped: it prefers damaged answers",
        watches=(
            "objective/own_over_cut",
            "objective/own_over_shuffled",
            "objective/own_over_swapped",
            "val/num_eos_tokens",
        ),
        limits={"share": 0.4, "swapped": 0.3, "against": 0.7, "ended": 0.5},
        when="two of three are so, and none is above {against}: objective/own_over_cut is below {share}, "
        "objective/own_over_shuffled is, objective/own_over_swapped is below {swapped} (two standard errors from a "
        "half, as {against} is). Where less than {ended} of the first responses ended, the last must be so: a stump "
        "is no whole answer. Error",
        look_at="the sign of the reward's output, which label of a classifier it is, its score on chosen and rejected "
        "answers of a preference file (nearstep score)",
        next="turn the sign round, or take the other label",
        check=_inverted,
    ),
    Rule(
        name="nothing_kept",
        title="The gate keeps next to nothing: updates train on few prompts, or on none",
        watches=("gate/empty",),
        limits={"share": 0.8},
        when="gate/empty is at least {share} (with gate_fill = replace 1) in each of the last updates: warn",
        look_at="gate/scores: near its upper end all is learned, near the lower one the prompts are too hard",
        next="other prompts (sampler = difficulty draws those between), more num_generations, a wider gate, more "
        "refill_rounds; or end the run where all is learned",
        check=_nothing_kept,
        follows=("no_spread",),
    ),
    Rule(
        name="no_spread",
        title="The reward says the same of every response: there is nothing to learn",
        watches=("objective/scores_std", "gate/scores_std", "objective/scores"),
        limits={"share": 1e-6, "updates": 8, "early": 0.25},
        when="objective/scores_std (with a gate gate/scores_std) stays below {share} of the scores in every update: "
        "error; in the last ones, or, after {updates} updates or more, in {early} of those of the first half: warn",
        look_at="reward/… of each part; prompts on which every answer is right, or every answer wrong",
        next="mend the reward, take prompts on which answers differ, more episodes in an update or more responses to a "
        "prompt, or end the run where all is learned",
        check=_no_spread,
        follows=("steps_too_large",),
    ),
    Rule(
        name="entropy_bonus",
        title="The entropy bonus is too large: the policy becomes random",
        watches=("policy/entropy_avg", "objective/scores_raw"),
        limits={"factor": 2.0, "deviations": 0.25},
        when="entropy_coef is above 0 and the entropy per token comes to {factor} times its start, but not in one "
        "update: warn; error unless the score rises by {deviations} standard deviations",
        look_at="entropy_coef; policy/entropy_avg beside objective/scores; sample completions",
        next="divide entropy_coef by 10, or leave it at 0 (PPO of language models is usually without)",
        check=_entropy_bonus,
        follows=("sampled_otherwise",),
    ),
    Rule(
        name="penalty_decides",
        title="The KL penalty outweighs the reward: kl_coef is too large",
        watches=("objective/non_score_reward_std", "objective/scores_std", "objective/kl_k3", "objective/scores_raw"),
        limits={"share": 1.0, "kl": 0.1, "deviations": 0.5},
        when="objective/non_score_reward_std is at least {share} of objective/scores_std in the middle update, with at "
        "most {kl} of KL per token and a score that rises by less than {deviations} standard deviations: error",
        look_at="kl_coef; objective/non_score_reward beside objective/scores; with an adaptive coefficient kl_target",
        next="divide kl_coef by 10 (0.01 to 0.1 is usual for scores of about 1), or scale the score",
        check=_penalty_decides,
        follows=("wrong_reference", "sampled_otherwise", "no_spread"),
    ),
    Rule(
        name="against_the_reward",
        title="The policy learns the opposite of what is rewarded: a sign is swapped (advantage, loss or reward "
        "weight)",
        watches=("objective/scores_raw", "objective/scores_std", "policy/approxkl_avg"),
        limits={"deviations": 0.75, "trend": 2.5},
        when="objective/scores_raw falls by {deviations} standard deviations of an episode, with a trend below "
        "−{trend}, and "
        "nothing else explains it: error",
        look_at="an advantage, trust region or loss aggregation of your own (nearstep check FILE:NAME holds it to its "
        "laws); "
        "reward_weights",
        next="turn the sign round",
        check=_against_the_reward,
        follows=(
            "steps_too_large",
            "sampled_otherwise",
            "mismatch",
            "random_forward",
            "entropy_bonus",
            "penalty_decides",
            "wrong_reference",
            "negative_weight",
            "never_ends",
            "broken_numbers",
            "endings_lost",
        ),
    ),
    Rule(
        name="does_not_rise",
        title="The reward does not rise",
        watches=("objective/rlhf_reward",),
        limits={"updates": 20, "trend": 2.0, "deviations": 0.25},
        when="over {updates} updates or more objective/rlhf_reward has no trend above {trend} and has not risen by "
        "{deviations} standard deviations: info; where it falls by as much: warn",
        look_at="policy/approxkl_avg (does the policy move?), objective/scores_std (is there a signal?), "
        "val/explained_variance (does the critic know it?)",
        next="more episodes in an update, another learning rate, a reward with more spread",
        check=_does_not_rise,
        follows=(
            "no_spread",
            "steps_too_large",
            "penalty_decides",
            "does_not_move",
            "sampled_otherwise",
            "random_forward",
            "wrong_reference",
            "entropy_bonus",
            "against_the_reward",
            "reward_hacked",
            "never_ends",
            "cut_off",
            "mismatch",
        ),
    ),
    Rule(
        name="out_of_range",
        title="Returns leave the declared range, so the critic cannot learn them",
        watches=("val/target_out_of_range",),
        limits={"share": 0.01},
        when="val/target_out_of_range ends above {share}: warn",
        look_at="objective/scores and val/return_std against value_min and value_max",
        next="a wider range: least and largest return after penalties, normalisation and clipping; or reward_clip",
        check=_out_of_range,
    ),
)
