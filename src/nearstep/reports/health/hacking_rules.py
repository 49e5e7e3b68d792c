"""The rule on hacked rewards: the score rises, and what it stands for does not."""

import numpy as np

from nearstep.reports.health.evidence import EVALUATION, RunEvidence
from nearstep.reports.health.reward_rules import score_change
from nearstep.reports.health.rule import Rule, Seen, Thresholds


def _hacked(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    score, change = score_change(evidence)
    if change < limits["deviations"] or score.trend() < limits["trend"]:
        return None
    signs = [*_worse_texts(evidence, limits), *_worse_elsewhere(evidence, limits)]
    if not signs:
        return None
    text = f"the score rises from {score.start:.3g} to {score.end:.3g}, and meanwhile {'; '.join(signs)}"
    half_way = (score.start + score.end) / 2
    return Seen("error", score.first_where(score.values >= half_way), text)


def _worse_texts(evidence: RunEvidence, limits: Thresholds) -> list[str]:
    """How responses have become worse, whatever the reward says."""
    signs = []
    alike, repeated = evidence.series("response/duplicates"), evidence.series("response/repeated")
    if alike.end - alike.start >= limits["duplicates"]:
        signs.append(f"{alike.end:.0%} of the responses are also given to another prompt ({alike.start:.0%} at first)")
    if repeated.end - repeated.start >= limits["repeated"]:
        signs.append(f"responses repeat themselves ({repeated.start:.0%} to {repeated.end:.0%} of runs of tokens)")
    ended = evidence.series("val/num_eos_tokens")
    if ended.start - ended.end >= limits["ended"]:
        signs.append(f"{ended.start:.0%} of the responses ended by themselves at first, {ended.end:.0%} do now")
    length, with_length = evidence.series("response/length_mean"), evidence.series("objective/score_length_correlation")
    factor = length.end / max(length.start, 1e-9)
    if (
        len(with_length)
        and factor >= limits["longer"]
        and np.median(with_length.values) >= limits["length_correlation"]
    ):
        signs.append(
            f"length is what is rewarded (correlation {np.median(with_length.values):.2f}); it goes from "
            f"{length.start:.3g} to {length.end:.3g} tokens"
        )
    one_token = evidence.series("objective/score_token_correlation")
    if len(one_token) and np.median(one_token.values) >= limits["token_correlation"]:
        signs.append(f"one token is what is rewarded (correlation {np.median(one_token.values):.2f} with its count)")
    kl = evidence.per_token("objective/kl_k3")
    if kl.end >= limits["kl"]:
        signs.append(f"the KL to the reference comes to {kl.end:.2g} per token")
    return signs


def _worse_elsewhere(evidence: RunEvidence, limits: Thresholds) -> list[str]:
    """Scores on prompts or by judges that training does not see, which fall."""
    signs = []
    for name in evidence.names(EVALUATION):
        is_score = name == f"{EVALUATION}objective/scores_raw" or "reward/" in name or "judge" in name or "win" in name
        if not is_score or name.endswith(("_std", "_none", "_failed", "_stderr", "_n", "_low", "_high")):
            continue
        seen = evidence.series(name)
        if len(seen) >= 2:
            spread = float(np.std(np.diff(seen.values))) if len(seen) > 3 else 0.0
            fall = float(seen.values.max() - seen.values[-1])
            if fall > max(
                limits["held_out"] * abs(float(seen.values.max() - seen.values.min())), 2 * spread, 1e-9
            ) and (seen.values[-1] < seen.values[0]):
                signs.append(f"{name} falls from {seen.values.max():.3g} to {seen.values[-1]:.3g}")
    return signs


RULES = (
    Rule(
        name="reward_hacked",
        title="The score rises while the responses get worse: the reward is hacked, or its sign is swapped",
        watches=(
            "objective/scores_raw",
            "response/duplicates",
            "response/repeated",
            "val/num_eos_tokens",
            "objective/score_length_correlation",
            "response/length_mean",
            "objective/score_token_correlation",
            "objective/kl_k3",
            "eval/<name>",
        ),
        limits={
            "deviations": 0.5,
            "trend": 2.0,
            "duplicates": 0.4,
            "repeated": 0.15,
            "ended": 0.3,
            "longer": 1.2,
            "length_correlation": 0.9,
            "token_correlation": 0.97,
            "kl": 1.0,
            "held_out": 0.5,
        },
        when="objective/scores_raw rises by {deviations} standard deviations with a trend above {trend}, and one of "
        "these: "
        "response/duplicates rises by {duplicates}; response/repeated rises by {repeated}; {ended} of the responses no "
        "longer end; the score goes with the length (correlation {length_correlation}) and responses are {longer} "
        "times "
        "as long; the score is the count of one token (correlation {token_correlation}); the KL reaches {kl} per "
        "token; a score or judge of evaluation falls from its best by {held_out} of its range, "
        "below where it began: error",
        look_at="sample completions beside those of the start, sorted by score; reward/… of each part; a judge that "
        "training does not see, over the KL",
        next="mend the reward (a length term, a second judge, its sign), raise kl_coef, add missing_eos_penalty, or "
        "end "
        "where the held-out judge was best",
        check=_hacked,
        follows=("steps_too_large", "sampled_otherwise", "inverted", "negative_weight", "entropy_bonus"),
    ),
)
