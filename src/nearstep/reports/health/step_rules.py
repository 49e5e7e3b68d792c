"""Rules on the size of steps: how far an update moves the policy, and where it has gone."""

import numpy as np

from nearstep.reports.health.evidence import RunEvidence, Series
from nearstep.reports.health.rule import Level, Rule, Seen, Thresholds


def _largest(series: Series) -> tuple[float, int]:
    """The largest value and its update."""
    at = int(np.argmax(series.values))
    return float(series.values[at]), int(series.updates[at])


def _steps_too_large(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    signs: list[tuple[Level, int, str]] = []
    moved = evidence.series("policy/approxkl_avg")
    if len(moved):
        far, update = _largest(moved)
        if far >= limits["approxkl_error"]:
            first = moved.first_where(moved.values >= limits["approxkl_error"])
            signs.append(("error", first, f"policy/approxkl_avg is {far:.2g} in update {update}"))
        elif (moved.values >= limits["approxkl_warn"]).sum() > 1:
            signs.append(("warn", update, f"policy/approxkl_avg is up to {far:.2g}"))
    ratio = evidence.series("val/ratio")
    if len(ratio):
        away, update = _largest(Series(ratio.updates, np.abs(np.log(np.maximum(ratio.values, 1e-12)))))
        if away >= np.log(limits["ratio"]):
            value = ratio.values[ratio.updates == update][0]
            signs.append(("error", update, f"the mean ratio val/ratio is {value:.3g} in update {update}"))
    kl = evidence.per_token("objective/kl_k3")
    if len(kl) > 1:
        jump, update = _largest(Series(kl.updates[1:], np.diff(kl.values)))
        if jump >= limits["kl_jump"]:
            signs.append(("error", update, f"the KL to the reference jumps by {jump:.2g} per token in update {update}"))
    signs += _broken_off(evidence, limits)
    if not signs:
        return None
    worst: Level = "error" if any(level == "error" for level, *_ in signs) else "warn"
    return Seen(worst, min(update for _, update, _ in signs), "; ".join(text for *_, text in signs))


def _broken_off(evidence: RunEvidence, limits: Thresholds) -> list[tuple[Level, int, str]]:
    """A policy that one update has made another one, where no KL tells: its entropy and its responses are others."""
    entropy, repeated = evidence.series("policy/entropy_avg"), evidence.series("response/repeated")
    ended, length = evidence.series("val/num_eos_tokens"), evidence.series("response/length_mean")
    if len(entropy) < 2 or not len(entropy) == len(repeated) == len(ended) == len(length):
        return []
    unlike = np.abs(np.diff(np.log(np.maximum(entropy.values, 1e-6)))) >= np.log(limits["entropy_factor"])
    others = np.abs(np.diff(repeated.values)) >= limits["share_jump"]
    ends = np.abs(np.diff(ended.values))
    others |= ends >= limits["share_jump"]
    others |= np.abs(np.diff(np.log(np.maximum(length.values, 1)))) >= np.log(limits["length_factor"])
    # A share of few rows jumps by chance: by √(½ / rows) at the most, in standard deviations of a difference.
    broken = (unlike & others) | (ends >= max(limits["ends_jump"], limits["errors"] * np.sqrt(0.5 / evidence.rows)))
    if not broken.any():
        return []
    at = int(np.argmax(broken))
    text = (
        f"from update {entropy.updates[at]} to {entropy.updates[at + 1]} the entropy per token goes from "
        f"{entropy.values[at]:.2g} to {entropy.values[at + 1]:.2g}, the length from {length.values[at]:.3g} to "
        f"{length.values[at + 1]:.3g}, the share that ends by itself from {ended.values[at]:.0%} to "
        f"{ended.values[at + 1]:.0%}"
    )
    return [("error", int(entropy.updates[at + 1]), text)]


def _too_many_masked(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    share = evidence.series("policy/clipfrac_avg")
    if len(share) < 3 or evidence.settings.get("ratio_level", "token") != "token" or share.end < limits["share"]:
        return None
    text = f"the trust region leaves {share.end:.0%} of the tokens without a gradient in {share.last}"
    return Seen("warn", share.first_where(share.values >= limits["share"]), text)


def _small_sample(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    share = evidence.series("val/effective_sample_size")
    low = float(np.median(share.values[-share.ends :])) if len(share) >= 3 else 1.0
    if low >= limits["warn"]:
        return None
    level: Level = "error" if low < limits["error"] else "warn"
    text = f"{low:.0%} of the sample is left in {share.last} (val/effective_sample_size)"
    return Seen(level, share.first_where(share.values < limits["warn"]), text)


def _does_not_move(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    rate, moved = evidence.series("lr"), evidence.series("policy/approxkl_avg")
    steps = evidence.series("optimizer/steps")
    if len(rate) >= 3 and not rate.values.any():
        return Seen("error", int(rate.updates[0]), "the learning rate is 0 in every update")
    kl = evidence.series("objective/kl_k3")
    if not len(steps) or steps.values[-1] < limits["steps"] * len(steps):
        return None  # the critic warms up, or a policy with one step in an update is looked at before it
    still = len(moved) >= 10 and moved.values.max() < limits["approxkl"] and (not len(kl) or kl.end < limits["kl"])
    if not still:
        return None
    return Seen("warn", int(moved.updates[0]), f"policy/approxkl_avg is at most {moved.values.max():.1g}")


def _broken_numbers(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    skipped = evidence.series("optimizer/skipped_steps")
    count = float(skipped.values[-1]) if len(skipped) else 0.0
    steps = evidence.series("optimizer/steps")
    taken = float(steps.values[-1]) if len(steps) else 0.0
    broken = {name for names in evidence.not_finite.values() for name in names}
    if not count and not broken:
        return None
    level: Level = "error" if broken or count >= limits["share"] * (taken + count) else "warn"
    text = f"{count:g} of {taken + count:g} optimizer steps were left out, since their gradient was not finite"
    if broken:
        text += f"; not finite: {', '.join(sorted(broken)[:4])}"
    updates = [*evidence.not_finite, *([skipped.first_where(skipped.values > 0)] if count else [])]
    return Seen(level, min(updates), text)


def _kl_high(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    kl = evidence.per_token("objective/kl_k3")
    if len(kl) < 3 or kl.end < limits["warn"]:
        return None
    level: Level = "error" if kl.end >= limits["error"] else "warn"
    text = f"the KL to the reference is {kl.end:.2g} per token in {kl.last}"
    return Seen(level, kl.first_where(kl.values >= limits["warn"]), text)


RULES = (
    Rule(
        name="broken_numbers",
        title="Numbers are not finite, and optimizer steps were left out",
        watches=("optimizer/skipped_steps", "optimizer/steps"),
        limits={"share": 0.1},
        when="a step was left out: warn; a metric is not finite, or {share} of all steps were left out: error",
        look_at="the warnings of the run, which say what was not finite; rewards; the learning rate; float16 weights",
        next="lower the learning rate, cut rewards (reward_clip), train in float32 or bfloat16",
        check=_broken_numbers,
        follows=("steps_too_large",),
    ),
    Rule(
        name="steps_too_large",
        title="Steps are too large: an update makes the policy another one (learning rate too high)",
        watches=(
            "policy/approxkl_avg",
            "val/ratio",
            "objective/kl_k3",
            "policy/entropy_avg",
            "response/repeated",
            "response/length_mean",
            "val/num_eos_tokens",
        ),
        limits={
            "approxkl_warn": 0.1,
            "approxkl_error": 0.5,
            "ratio": 2.0,
            "kl_jump": 1.0,
            "entropy_factor": 3.0,
            "share_jump": 0.3,
            "length_factor": 2.5,
            "ends_jump": 0.5,
            "errors": 4,
        },
        when="policy/approxkl_avg reaches {approxkl_error} once: error, {approxkl_warn} twice: warn; val/ratio leaves "
        "1/{ratio} … {ratio}, or objective/kl_k3 rises by {kl_jump} per token in one update, or the entropy changes "
        "{entropy_factor}-fold in one while repetition or the share of ended responses changes by {share_jump}, or the "
        "length {length_factor}-fold, or the share of ended responses jumps by {ends_jump} and {errors} standard "
        "errors: error",
        look_at="learning_rate, and how many steps an update has (num_ppo_epochs × num_mini_batches); max_grad_norm; "
        "policy/grad_norm; whether bad steps begin with one odd batch",
        next="divide learning_rate by 10, or take fewer epochs; early_stop_kl = 0.02 ends an update that has gone too "
        "far",
        check=_steps_too_large,
        follows=(
            "random_forward",
            "sampled_otherwise",
            "wrong_reference",
            "inverted",
            "entropy_bonus",
            "against_the_reward",
        ),
    ),
    Rule(
        name="too_many_masked",
        title="Most tokens are clipped or masked: much of the batch teaches nothing",
        watches=("policy/clipfrac_avg",),
        limits={"share": 0.5},
        when="the last updates leave more than {share} of the tokens without a gradient: warn",
        look_at="policy/masked_positive and policy/masked_negative; learning_rate; the trust region's width",
        next="lower learning_rate or num_ppo_epochs, or widen the region (cliprange, divergence_low)",
        check=_too_many_masked,
        follows=("steps_too_large", "mismatch", "too_old", "sampled_otherwise", "random_forward"),
    ),
    Rule(
        name="small_sample",
        title="The effective sample size is small: a few tokens decide the update",
        watches=("val/effective_sample_size",),
        limits={"warn": 0.5, "error": 0.1},
        when="its median over the last updates is below {warn}: warn; {error}: error",
        look_at="val/ratio_var, policy/mismatch_kl, and how old the samples are",
        next="fewer epochs, a lower learning rate, ratio_cap, or a correction",
        check=_small_sample,
        follows=("steps_too_large", "mismatch", "too_old", "sampled_otherwise", "random_forward"),
    ),
    Rule(
        name="does_not_move",
        title="The policy does not move: the learning rate is 0 or far too low",
        watches=("lr", "policy/approxkl_avg", "objective/kl_k3"),
        limits={"approxkl": 1e-7, "kl": 1e-3, "steps": 1.5},
        when="the learning rate is 0 throughout: error; or in 10 updates or more, of at least {steps} steps each, "
        "policy/approxkl_avg stays below {approxkl} and objective/kl_k3 below {kl}: warn",
        look_at="learning_rate, warmup_steps, and whether weights narrower than float32 have master_weights",
        next="raise learning_rate tenfold; with adapters 1e-4 to 1e-3 is usual, with all weights 1e-6 to 1e-5",
        check=_does_not_move,
        follows=("no_spread",),
    ),
    Rule(
        name="kl_high",
        title="The policy has gone far from its reference",
        watches=("objective/kl_k3", "response/length_mean"),
        limits={"warn": 1.0, "error": 4.0},
        when="objective/kl_k3 is at least {warn} per token in the last updates: warn; {error}: error",
        look_at="sample completions: is this still the language of the start? Then the score: what is it that rises?",
        next="raise kl_coef or set kl_target, lower learning_rate, or end earlier (early stopping on the KL)",
        check=_kl_high,
        follows=("steps_too_large", "wrong_reference", "reward_hacked", "entropy_bonus", "against_the_reward"),
    ),
)
