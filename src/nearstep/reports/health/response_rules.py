"""Rules on responses and on the critic: whether they end, how long and varied they are, whether values are right."""

import numpy as np

from nearstep.reports.health.evidence import RunEvidence, Series, has_no_stop
from nearstep.reports.health.rule import Level, Rule, Seen, Thresholds


def _cut_on_purpose(evidence: RunEvidence) -> bool:
    """Whether responses end below every limit of the run: a loop of one's own drew their lengths (LengthSampler)."""
    longest = evidence.series("response/length_max")
    limit = evidence.number("response_length")
    if not len(longest) or not limit or evidence.settings.get("max_length") is not None:
        return False
    return bool(longest.values.max() < limit)


def _never_ends(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    ended = evidence.series("val/num_eos_tokens")
    if len(ended) < 2 or has_no_stop(evidence) or _cut_on_purpose(evidence) or ended.values.max() > limits["share"]:
        return None
    text = f"of the responses of {len(ended)} updates {ended.values.mean():.1%} ended with a stop token"
    return Seen("error", int(ended.updates[0]), text)


def _endings_lost(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    ended = evidence.series("val/num_eos_tokens")
    before = float(ended.values[: ended.ends].max()) if len(ended) >= 3 else 0.0
    if before < limits["before"] or ended.end > limits["after"]:
        return None
    text = f"{before:.0%} of the responses ended by themselves at first, {ended.end:.0%} do now"
    return Seen("error", ended.first_where(ended.values <= limits["after"]), text)


def _cut_off(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    cut = evidence.series("response/truncated")
    if len(cut) < 3 or has_no_stop(evidence) or _cut_on_purpose(evidence):
        return None
    if cut.end < limits["warn"] and cut.values[0] >= limits["error"]:
        # Rambling that was unlearned, or answers that fit no longer: the curves look the same.
        text = f"{cut.values[0]:.0%} of the responses of update {cut.updates[0]} were cut off, {cut.end:.0%} are now"
        return Seen("info", int(cut.updates[0]), f"{text}: the policy has learned to be shorter. Is that wanted?")
    if cut.end < limits["warn"]:
        return None
    level: Level = "error" if cut.end >= limits["error"] else "warn"
    text = f"{cut.end:.0%} of the responses are cut off in {cut.last}"
    if limit := evidence.number("response_length"):
        text += (
            f", at response_length {limit:g}; their mean length is {evidence.series('response/length_mean').end:.3g}"
        )
    return Seen(level, cut.first_where(cut.values >= limits["warn"]), text)


def _empty(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    length = evidence.series("response/length_mean")
    if (
        len(length) < 2
        or length.end > limits["tokens"]
        or evidence.number("response_length", limits["room"]) < limits["room"]
    ):
        return None
    text = f"the mean length is {length.end:.3g} tokens in {length.last}, the stop token included"
    return Seen("error", length.first_where(length.values <= limits["tokens"]), text)


def _length_drift(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    length = evidence.series("response/length_mean")
    if len(length) < 5 or not length.start:
        return None
    factor = length.end / length.start
    if 1 / limits["factor"] < factor < limits["factor"]:
        return None
    return Seen(
        "warn", int(length.updates[-1]), f"the mean length goes from {length.start:.3g} to {length.end:.3g} tokens"
    )


def _entropy_gone(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    entropy = evidence.series("policy/entropy_avg")
    if (
        len(entropy) < 3
        or entropy.start <= 0
        or entropy.end > limits["share"] * entropy.start
        or (entropy.end > limits["nats"])
    ):
        return None
    text = f"the entropy per token goes from {entropy.start:.2g} to {entropy.end:.2g} nats"
    return Seen("warn", entropy.first_where(entropy.values <= limits["share"] * entropy.start), text)


def _entropy_explodes(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    entropy = evidence.series("policy/entropy_avg")
    if (
        len(entropy) < 3
        or entropy.end < limits["factor"] * entropy.start
        or entropy.end - entropy.start < limits["nats"]
    ):
        return None
    text = f"the entropy per token goes from {entropy.start:.2g} to {entropy.end:.2g} nats"
    return Seen("warn", entropy.first_where(entropy.values >= limits["factor"] * entropy.start), text)


def _all_alike(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    alike = evidence.series("response/duplicates")
    if len(alike) < 3 or alike.end - alike.start < limits["rise"]:
        return None
    text = (
        f"{alike.end:.0%} of the responses are also given to another prompt of the batch ({alike.start:.0%} at first)"
    )
    return Seen("warn", alike.first_where(alike.values - alike.start >= limits["rise"]), text)


def _critic_frozen(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    rate, steps = evidence.series("vf_lr"), evidence.series("value/optimizer_steps")
    if len(rate) >= 3 and not rate.values.any():
        return Seen("error", int(rate.updates[0]), "the critic's learning rate is 0 in every update")
    if len(steps) >= 3 and not steps.values.any():
        return Seen("error", int(steps.updates[0]), f"the critic took no optimizer step in {len(steps)} updates")
    return None


def _critic_misleads(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    explained = evidence.series("val/explained_variance")
    if len(explained) < limits["updates"]:
        return None
    late = float(np.median(explained.values[len(explained) // 2 :]))
    if late > limits["share"]:
        return None
    text = f"the critic's explained variance is {late:.2g} in the second half of the run: the mean would do better"
    return Seen("warn", int(explained.updates[len(explained) // 2]), text)


def _values_off(evidence: RunEvidence, limits: Thresholds) -> Seen | None:
    bias, spread = evidence.series("val/value_bias"), evidence.series("val/return_std")
    if len(bias) < limits["updates"] or len(bias) != len(spread):
        return None
    off = float(np.median((bias.values / np.maximum(spread.values, 1e-9))[-bias.ends :]))
    learns = Series(bias.updates, np.abs(bias.values)).trend() < -limits["trend"]
    if abs(off) < limits["deviations"] or learns:
        return None
    text = f"values lie {abs(off):.2g} standard deviations of a return {'above' if off > 0 else 'below'} the returns"
    return Seen("warn", int(bias.updates[-1]), text)


RULES = (
    Rule(
        name="never_ends",
        title="No response ends: the stop token is never emitted, or response_length is too short for any answer",
        watches=("val/num_eos_tokens", "response/length_max"),
        limits={"share": 0.005},
        when="there is a stop token, and in no update more than {share} of the responses ended with one, though some "
        "reached response_length: error",
        look_at="what the run's introduction says a response ends with; sample completions: does the model end its "
        "answers "
        "with another token, or is it cut in the middle of one? Was the start trained with an EOS after each answer?",
        next="name the right stop_token or stop_token_id, train the start with EOS, or raise response_length",
        check=_never_ends,
        follows=("steps_too_large",),
    ),
    Rule(
        name="endings_lost",
        title="The policy has unlearned to end its responses",
        watches=("val/num_eos_tokens",),
        limits={"before": 0.5, "after": 0.2},
        when="at least {before} of the responses ended at first, and at most {after} do in the last updates: error",
        look_at="whether the reward grows with the length; response/repeated; sample completions",
        next="set missing_eos_penalty (or non_eos_penalty, the EOS trick), and look at the rules that speak beside "
        "this",
        check=_endings_lost,
        follows=("steps_too_large", "reward_hacked", "sampled_otherwise", "entropy_bonus", "against_the_reward"),
    ),
    Rule(
        name="cut_off",
        title="Responses are cut off: response_length is too short for them",
        watches=("response/truncated", "response/length_mean", "response/length_max"),
        limits={"warn": 0.4, "error": 0.7},
        when="{warn} of the responses of the last updates are cut off: warn; {error}: error; {error} of those of the "
        "first update alone: info. Not where every response is shorter than response_length: there a loop of your own "
        "drew the lengths",
        look_at="sample completions: are answers cut in the middle? response/length_mean beside response_length",
        next="raise response_length; mask_truncated_completions keeps cut rows out of the loss, missing_eos_penalty "
        "makes "
        "them dear",
        check=_cut_off,
        follows=(
            "never_ends",
            "endings_lost",
            "steps_too_large",
            "reward_hacked",
            "sampled_otherwise",
            "entropy_bonus",
            "against_the_reward",
            "negative_weight",
            "inverted",
        ),
    ),
    Rule(
        name="empty",
        title="Responses are empty: their first token ends them",
        watches=("response/length_mean",),
        limits={"tokens": 1.2, "room": 3},
        when="response/length_mean is at most {tokens} in the last updates, where response_length is at least {room}: "
        "error",
        look_at="what a response ends with: is it a token that answers begin with (a line break)? The prompt: does it "
        "end as "
        "those that the start was trained on? A reward that pays for silence",
        next="mend stop_token or the prompts; with a reward that prefers short answers, mend the reward",
        check=_empty,
        follows=("steps_too_large", "inverted", "negative_weight", "against_the_reward"),
    ),
    Rule(
        name="length_drift",
        title="Responses become much longer or shorter",
        watches=("response/length_mean",),
        limits={"factor": 3.0},
        when="response/length_mean leaves 1/{factor} … {factor} of its start: warn",
        look_at="objective/score_length_correlation: is length what the reward asks for?",
        next="a reward that length does not buy; overlong_buffer bounds it softly",
        check=_length_drift,
        follows=("steps_too_large", "reward_hacked", "endings_lost", "entropy_bonus", "against_the_reward", "inverted"),
    ),
    Rule(
        name="entropy_gone",
        title="The entropy has collapsed: the policy explores no more",
        watches=("policy/entropy_avg",),
        limits={"share": 0.01, "nats": 0.005},
        when="policy/entropy_avg comes to {share} of its start and below {nats} nats: warn",
        look_at="objective/scores: has it reached what can be reached? response/duplicates; the learning rate",
        next="lower learning_rate, raise kl_coef, or end here; a small entropy_coef holds it",
        check=_entropy_gone,
        follows=("steps_too_large", "reward_hacked", "against_the_reward", "no_spread"),
    ),
    Rule(
        name="entropy_explodes",
        title="The entropy explodes: the policy becomes random",
        watches=("policy/entropy_avg",),
        limits={"factor": 3.0, "nats": 0.5},
        when="policy/entropy_avg comes to {factor} times its start and rises by {nats} nats: warn",
        look_at="entropy_coef, learning_rate, and whether the score still rises",
        next="lower the learning rate and the entropy bonus",
        check=_entropy_explodes,
        follows=("steps_too_large", "entropy_bonus", "sampled_otherwise", "against_the_reward"),
    ),
    Rule(
        name="all_alike",
        title="The policy answers different prompts alike",
        watches=("response/duplicates",),
        limits={"rise": 0.3},
        when="response/duplicates rises by {rise}: warn",
        look_at="sample completions; whether the reward reads the prompt at all",
        next="a reward that depends on the prompt; a higher kl_coef",
        check=_all_alike,
        follows=("steps_too_large", "reward_hacked", "against_the_reward", "negative_weight", "inverted", "no_spread"),
    ),
    Rule(
        name="critic_frozen",
        title="The critic does not learn: its learning rate is 0",
        watches=("vf_lr", "value/optimizer_steps"),
        limits={},
        when="vf_lr is 0 in every update, or the critic took no step: error",
        look_at="vf_learning_rate, vf_coef, vf_update_frequency",
        next="give vf_learning_rate a value, or leave it out (then it is learning_rate)",
        check=_critic_frozen,
        follows=("does_not_move",),
    ),
    Rule(
        name="critic_misleads",
        title="The critic misleads: its values explain nothing of the returns",
        watches=("val/explained_variance",),
        limits={"updates": 10, "share": -0.1},
        when="over {updates} updates or more the median of val/explained_variance in the second half is below "
        "{share}: warn",
        look_at="loss/value_avg, val/value_bias, val/clipfrac_avg (does cliprange_value hold the critic back?)",
        next="vf_warmup_updates, a higher vf_learning_rate, more epochs for the critic (critic = decoupled); or no "
        "critic",
        check=_critic_misleads,
        follows=("critic_frozen", "steps_too_large", "no_spread", "sampled_otherwise"),
    ),
    Rule(
        name="values_off",
        title="The critic's values are off on the whole",
        watches=("val/value_bias", "val/return_std"),
        limits={"updates": 16, "deviations": 2.0, "trend": 2.0},
        when="after {updates} updates val/value_bias is beyond {deviations} times val/return_std, and its size has no "
        "trend "
        "below −{trend}: warn",
        look_at="value calibration in the report; cliprange_value against the size of the scores",
        next="normalize_scores, a wider cliprange_value, a higher vf_learning_rate",
        check=_values_off,
        follows=("critic_frozen", "steps_too_large", "no_spread", "critic_misleads", "out_of_range"),
    ),
)
