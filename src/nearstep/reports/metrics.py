"""What each metric of a run means.

`python -m nearstep.reports.metrics > docs/metrics.md` writes the page for readers.
"""

from collections.abc import Mapping
from itertools import groupby
from typing import TypeAlias

Numbers: TypeAlias = Mapping[str, int | float]
"""Metrics as they are shown: one number each, by name."""

# Notation: Σ over the tokens of a response, π the policy, ρ = π / π_old, ℓ = log π_ref − log π.
MEANINGS: dict[str, str] = {
    "objective/rlhf_reward": "what PPO maximises: objective/scores + objective/non_score_reward. Should rise.",
    "objective/scores": "mean score of an episode, after the rules for responses without a stop token.",
    "objective/scores_raw": "mean score as the rewards gave it, before those rules.",
    "objective/scores_std": "standard deviation of objective/scores over episodes. Near 0 nothing can be learnt.",
    "objective/kl": "mean over episodes of Σ kl, policy at rollout against reference, by the chosen kl_estimator. "
    "Starts at 0 and grows slowly; a jump, or values that stay negative, mean trouble.",
    "objective/kl_per_token": "the same KL per token: summed over all episodes, divided by all response tokens.",
    "objective/kl_k3": "mean over episodes of Σ (exp(ℓ) − 1 − ℓ), whichever estimator was chosen. Never negative.",
    "objective/kl_exact": "mean over the rows of kl_exact_rows of Σ KL(π ‖ π_ref) of the next token, summed over the "
    "whole vocabulary. Estimates what objective/kl does, with less noise, and is never negative.",
    "objective/own_over_cut": "share of the policy's first answers that the reward prefers to a copy cut in half, with "
    "and without its end; ties count half. Of reward models in update 1, of functions in the last of 8 updates or "
    "more.",
    "objective/own_over_shuffled": "the same against copies with their tokens shuffled, and in reverse order. Both "
    "below a half: the reward is upside down.",
    "objective/own_over_swapped": "the same against the policy's answers to other prompts, exchanged in pairs: exactly "
    "a half where the reward does not read the prompt, below it where it is upside down.",
    "objective/entropy": "mean over episodes of Σ −log π of the sampled tokens, in nats: an unbiased estimate of "
    "the entropy of a whole response. Near 0 the policy always says the same.",
    "objective/non_score_reward": "mean over episodes of Σ −kl_coef · kl: what the KL penalty costs. At most 0, as a "
    "rule.",
    "objective/non_score_reward_std": "standard deviation over episodes of that cost. Above objective/scores_std the "
    "policy is taught more by the penalty than by the score.",
    "objective/kl_coef": "weight of the KL penalty in this update.",
    "objective/score_length_correlation": "correlation over episodes of the score with the length. Near 1 length is "
    "what is rewarded.",
    "objective/score_token_correlation": "largest correlation of the score with how often one and the same token "
    "stands in the response, over the tokens of four responses or more. Near 1 that token is what is rewarded.",
    "objective/score_ending_correlation": "correlation of the score with whether the response ended by itself.",
    "objective/score_likelihood_correlation": "correlation of the score with the mean log-prob of the tokens under the "
    "reference (without one, under the policy). Strongly negative: what is rewarded is unlike what the policy began "
    "with.",
    "reward/<name>": "mean of one part of the reward, before its weight, over the episodes where it applied.",
    "reward/<name>_std": "standard deviation of that part over the same episodes.",
    "reward/<name>_explained": "advantage = gae_by_reward: 1 − Var(R − V) / Var(R) of that part alone, over tokens of "
    "scored responses.",
    "reward/<name>_none": "share of episodes where that part did not apply (the function gave None).",
    "reward/<name>_failed": "share of episodes on which that part failed: left out of the update, or asked about "
    "again. Absent with on_reward_error=raise, where a failure ends the run.",
    "policy/approxkl_avg": "how far the policy has left the one that sampled: mean of ½ (log ρ)² per token. "
    "Usually below 0.02.",
    "policy/clipfrac_avg": "share of tokens that the trust region leaves without a gradient, where the clip "
    "decides. 0.05 to 0.3 is usual; at 0 the "
    "learning rate may be too low, above 0.5 too high.",
    "policy/region_weight": "mean weight of the trust region: with a mask, the share of tokens that keep their "
    "gradient; with a region that damps, how much of it.",
    "policy/masked_positive": "the same share among tokens of positive advantage.",
    "policy/masked_negative": "the same share among tokens of negative advantage.",
    "policy/prob_diff_mean": "mean of |π − μ|, the probabilities of the sampled token now and as the engine had it.",
    "policy/prob_diff_max": "largest |π − μ|.",
    "policy/mismatch_kl": "mean of π/μ − 1 − log π/μ before the first optimizer step of an update: how far engine and "
    "trainer disagree. About 1e-12 in float32, 1e-4 in bfloat16. With anchor = recomputed over all rows; else over "
    "those of the first minibatch, the only log-probs of weights that have not moved. So is what follows, "
    "up to policy/importance_max.",
    "policy/mismatch_kl_worst": "largest mean of that over one response.",
    "policy/mismatch_far": "share of tokens whose π/μ is above 2 or below ½: those that the usual corrections change.",
    "policy/mismatch_ess": "(Σ π/μ)² / (n Σ (π/μ)²) over tokens: the share of the sample that is left for the trainer. "
    "Near 1.",
    "policy/importance_avg": "mean of π_old / μ, trainer over engine, before any limit of a correction. Near 1, unless "
    "the engine samples from something else.",
    "policy/importance_max": "largest π_old / μ.",
    "policy/importance_cut": "share of tokens whose weight a limit of the correction changes; with a correction. With "
    "anchor = interpolated over the tokens of all steps, as the anchor moves with the policy.",
    "policy/importance_ess": "(Σw)² / (n Σw²) of the weights that the correction gives, tokens left out included; with "
    "a correction.",
    "policy/repeat_gap": "largest |π/π − 1| of two passes over the same few rows, in updates 1, 101, 201 …: 0 unless "
    "the "
    "model draws random numbers (dropout), but for rounding on a GPU.",
    "policy/surprise_gap": "mean of −log μ − H per token before the first optimizer step of an update, H the entropy "
    "of "
    "the next token's distribution as the trainer has it. 0 but for chance, if the engine samples from what it "
    "records.",
    "policy/surprise_error": "standard error of policy/surprise_gap: up to 4 of them it may be off by chance.",
    "policy/entropy_avg": "mean entropy of the next token's distribution, at the sampling temperature, in nats.",
    "policy/grad_norm": "L2 norm of the policy's gradient before it is cut to max_grad_norm, mean over steps. With "
    "critic_trunk = shared the value loss has its part in it.",
    "loss/policy_avg": "policy loss, mean per token. About 0 by construction where advantages are whitened.",
    "loss/policy_abs": "mean per token of the larger of |A·ρ| and |A·clip(ρ)| (without a clip, of the absolute loss): "
    "does not cancel, so runs can be compared by it.",
    "loss/value_avg": "value loss, without vf_coef: of a linear head ½ · mean of the larger (V − R)² with and without "
    "clipping; of other heads their own (docs/algorithms.md), so it compares runs of one head only.",
    "auxiliary/nll": "mean of −log π over the tokens of good rows, at the sampling temperature, without nll_coef; with "
    "nll_coef.",
    "auxiliary/good_rows": "share of responses whose score (or part of it) is at least nll_min_score; with nll_coef.",
    "auxiliary/z_loss": "mean of (log Σ exp)² of the policy's own logits per token, without z_loss_coef. Near 0 where "
    "logits do not drift.",
    "auxiliary/teacher_kl": "mean of log π_old − log π_teacher per token of the rollout: estimates the KL to the "
    "teacher. Should fall.",
    "auxiliary/teacher_k2": "mean of ½ (log π − log π_teacher)² per token, without teacher_coef; with teacher_in=loss.",
    "auxiliary/ptx": "mean of −log π over the tokens of ptx_dataset_name that are predicted, at temperature 1, without "
    "ptx_coef. Should not rise.",
    "auxiliary/<name>": "a loss of your own: its sum divided by its count, without its coef.",
    "value/grad_norm": "L2 norm of the critic's gradient before it is cut to max_grad_norm, mean over steps. With "
    "critic_trunk = shared of its head alone.",
    "value/optimizer_steps": "optimizer steps of the critic so far, those on vf_pretrain_rollouts included.",
    "value/pretrain_explained_variance": "in update 1: 1 − Var(R − V) / Var(R) over the rows of vf_pretrain_rollouts "
    "in the last pass over them, each update's before the steps on it.",
    "value/pretrain_loss": "in update 1: the value loss in that pass.",
    "value/weight_avg": "with vf_reweight: mean over states of their weight in the value loss, π/π_old after the "
    "policy's steps, or 0 where that is outside vf_reweight_low … vf_reweight_high. Near 1.",
    "value/weight_dropped": "share of those states whose ratio is outside.",
    "value/weight_effective": "(Σw)² / (n Σw²) of those weights: the share of the states that is left. Near 1; where "
    "it falls, the critic learns from few of them.",
    "val/clipfrac_avg": "share of tokens where the clip decided the value loss. Of a linear head.",
    "val/target_out_of_range": "share of tokens whose return lies outside value_min and value_max, and was held at the "
    "nearer end. Above 0 the critic learns something else than the returns: widen the range.",
    "val/value_entropy": "value_head = hl_gauss: mean entropy of the bins, in nats; log(value_bins) at the start.",
    "val/quantile_std": "value_head = quantile: mean over tokens of the standard deviation of the quantiles.",
    "val/disagreement": "mean over tokens of the standard deviation of what the critic's members say (critic_models, "
    "value_head = ensemble), at rollout. Where it falls to 0 they have become one critic.",
    "val/advantage_masked": "advantage_mask_share: share of tokens that have no advantage, for the critic's members "
    "agree most there. 0 while all say the same, as before their first step.",
    "val/entropy_masked": "entropy_mask_share: share of tokens without an entropy bonus.",
    "val/ensemble_std": "value_head = ensemble: mean over tokens of the standard deviation of the members' values: how "
    "far they disagree. 0 at the start.",
    "val/ratio": "mean of ρ per token. Stays near 1; above 2 or below 0.1 the steps are too large.",
    "val/ratio_clamped": "mean per token of ρ as the loss uses it: clipped to 1 ± cliprange, or at most ratio_cap.",
    "val/ratio_var": "variance of ρ over tokens, E[ρ²] − E[ρ]². Below about 0.1 in a calm run.",
    "val/effective_sample_size": "(Σρ)² / (n Σρ²) over tokens: the share of the sample that is left once the policy "
    "has "
    "moved. Near 1; it falls before a collapse.",
    "val/ratio_max_gap_first": "largest |π/μ − 1| before the first optimizer step of an update, when nothing has "
    "moved yet: 1e-5 or less in float32. More means that sampling and training disagree on log-probs.",
    "val/num_eos_tokens": "share of responses that ended with a stop token. Should approach 1.",
    "val/explained_variance": "1 − Var(R − V) / Var(R) over tokens of scored responses. 1 is a perfect critic, 0 one "
    "that knows only the mean, below 0 one that misleads.",
    "val/critic_text_cut": "critic_columns: share of rows whose text for the critic was too long, so that its end was "
    "left out.",
    "val/value_bias": "mean of V − R over tokens of scored responses. Near 0, in units of val/return_std.",
    "val/return_std": "standard deviation of the returns over the same tokens.",
    "val/return_explained_variance": "with baseline_fallback: 1 − Var(G − V) / Var(G) over tokens of scored responses, "
    "G the discounted sum of rewards with λ = 1. At most 0, advantages are G less its mean.",
    "val/baseline_fallback": "1 in an update whose advantages are measured against the mean of the batch, 0 where "
    "against the critic's values.",
    "val/advantage_std": "standard deviation of the advantages over tokens of scored responses, before whitening.",
    "response/length_mean": "mean length of a response in tokens, the stop token included.",
    "response/length_max": "length of the longest response in tokens.",
    "response/truncated": "share of responses that were cut off by response_length.",
    "response/repeated": "share of runs of three tokens that their response has earlier. Rises where a policy repeats "
    "itself.",
    "response/duplicates": "share of responses that another prompt of the batch (of a process) got word for word. "
    "Rises where the policy comes to answer everything alike.",
    "response/left_out": "share of responses that nothing is learned from: not scored, cut off where "
    "mask_truncated_completions is on, or dropped by the gate.",
    "sampler/pool_<n>": "with sampler = difficulty, share of all prompts whose last mean score lies in that pool, from "
    "low scores to high.",
    "sampler/unseen": "with sampler = difficulty, share of all prompts that were not drawn yet, or never scored.",
    "gate/dropped": "share of the groups sampled in this update that the gate dropped: work thrown away.",
    "gate/empty": "share of the places of the batch whose group was dropped at last, so that it trains nothing. Near 1 "
    "the gate is too narrow, or the prompts are all too easy or too hard.",
    "gate/rounds": "rounds of sampling in this update: 1, and one more for each refill.",
    "gate/scores": "mean score, as the rewards gave it, of all responses sampled in this update, dropped ones too. "
    "objective/scores_raw is that of the batch, which a gate has chosen.",
    "gate/scores_std": "standard deviation of the same scores.",
    "staleness/age": "with max_staleness: mean over tokens of the updates by which the weights that sampled them are "
    "behind. At most max_staleness, but in the critic's warm-up.",
    "staleness/age_max": "largest such age.",
    "staleness/age_oldest": "mean over responses of the age of their oldest token.",
    "staleness/age_newest": "mean over responses of the age of their newest token.",
    "staleness/versions": "mean number of versions of the weights within a response.",
    "staleness/dropped": "responses left out in this update, since they would have been too old (on_stale = drop).",
    "staleness/waited": "prompts that the update waited for though enough others were answered: for order or for age.",
    "staleness/idle": "share of the time in which the generation process had nothing to do: it waits for the trainer. "
    "time/generate is the share in which the trainer waits for it. Where one is high, the other side is the slower.",
    "optimizer/steps": "optimizer steps of the policy so far.",
    "optimizer/skipped_steps": "optimizer steps left out so far, since their gradient was not finite.",
    "health/level": "what the rules of docs/health.md say of the run so far: 0 healthy, 1 watch, 2 ill.",
    "lr": "learning rate of the policy in this update.",
    "vf_lr": "learning rate of the critic in this update.",
    "update": "updates done: one rollout and its optimizer steps each.",
    "episode": "episodes (responses) sampled so far, over all processes.",
    "epoch": "passes over the prompts so far; of a stream, the share of the run.",
    "eps": "episodes per second over the last 20 updates.",
    "tokens_per_second": "tokens of prompts and responses per second of this update, over all processes.",
    "seconds": "wall-clock time of this update.",
    "time/generate": "share of `seconds` spent sampling responses, or waiting for those that are sampled ahead.",
    "time/score": "share of `seconds` spent in the rewards.",
    "time/experience": "share of `seconds` spent on log-probs, values and advantages before the update.",
    "time/update": "share of `seconds` spent on optimizer steps.",
    "time/other": "share of `seconds` spent elsewhere (data, reports, saving). The five shares add up to 1.",
    "eval/<name>": "the metric of that name, measured on the evaluation prompts. With several evaluation sets it is "
    "eval/<set>/<name>.",
    "eval/<name>_stderr": "standard error of that mean, over prompts: the mean over the responses to a prompt is one "
    "value.",
    "eval/<name>_n": "the prompts that this mean is over; those whose responses could not be scored are left out.",
    "eval/objective/kl": "mean of Σ kl over the tokens of an evaluation's responses, by the chosen kl_estimator, to "
    "the reference: the policy as it started, unless ref_model_path names another. Of greedy responses it is no "
    "estimate of the KL, but still says how far the policy has gone.",
    "eval/win_rate/start": "share of evaluation prompts on which the response scores more than what the policy "
    "answered before its first update; ties count ½. Starts at 0.5.",
    "eval/win_rate/reference": "the same against the answers in the data.",
    "eval/win_rate/<other>_low": "lower end of the 95 % Wilson interval of that share, over prompts.",
    "eval/win_rate/<other>_high": "upper end of that interval.",
    "eval/judge/scores": "mean score by the rewards that training does not see (eval_reward_funcs, "
    "eval_reward_model_path). Where it falls while eval/objective/scores rises, the reward is being hacked.",
    "eval/judge/<name>": "reward/… and win_rate/… as that judge scores.",
}

HEADINGS: dict[str, str] = {
    "objective": "Objective (per episode)",
    "reward": "Parts of the reward",
    "policy": "Policy",
    "loss": "Losses",
    "auxiliary": "Auxiliary losses",
    "value": "Critic",
    "val": "Checks",
    "response": "Responses",
    "sampler": "Sampler",
    "gate": "Gate",
    "staleness": "Staleness",
    "optimizer": "Optimizer",
    "health": "Health",
    "": "Progress",
    "time": "Time",
    "eval": "Evaluation",
}


def meaning(name: str) -> str:
    """One line on what the metric `name` says, `eval/…` and `reward/…` included."""
    if name in MEANINGS:
        return MEANINGS[name]
    group, _, rest = name.partition("/")
    if name.startswith("sampler/pool_"):
        return MEANINGS["sampler/pool_<n>"]
    if group == "eval":
        return _evaluation_meaning(rest)
    if group == "reward":
        ending = next((ending for ending in ("_std", "_none", "_failed", "_explained") if rest.endswith(ending)), "")
        return MEANINGS[f"reward/<name>{ending}"]
    if group == "auxiliary":
        return MEANINGS["auxiliary/<name>"]
    return "logged by code of the user."


def _evaluation_meaning(name: str) -> str:
    """What a metric of an evaluation says; the name of one set of several may stand in front."""
    group, _, rest = name.partition("/")
    if f"eval/{name}" in MEANINGS:
        return MEANINGS[f"eval/{name}"]
    if group == "judge":
        return f"by the judge of evaluations: {_evaluation_meaning(rest)}"
    ending = next((ending for ending in ("_stderr", "_n", "_low", "_high") if name.endswith(ending)), None)
    if ending is not None:
        return MEANINGS[f"eval/{'win_rate/<other>' if ending in ('_low', '_high') else '<name>'}{ending}"]
    if rest and group not in HEADINGS:
        return f"of the evaluation set {group}: {_evaluation_meaning(rest)}"
    return f"on the evaluation prompts: {meaning(name)}"


def document() -> str:
    """The page docs/metrics.md: every metric with its meaning, grouped by what stands before the slash."""
    lines = [
        "# Metrics",
        "",
        "Every metric of a run, with its meaning. The same names stand in `metrics.jsonl` and at every tracker.",
        "Means are over all episodes, or over all tokens of all responses, of all processes; nothing is padded, so no",
        "padding counts. Means under `policy/`, `loss/` and `val/` run over the tokens of all optimizer steps of an",
        "update. A metric that had nothing to count is absent. A number that is not finite stands as `null` in",
        "`metrics.jsonl`, and the key `not_finite` says what it was. An entry shows its own update alone, not the mean",
        "since the last entry.",
        "",
        "Notation: Σ over the tokens of a response, π the policy, μ what the engine recorded of the one that sampled,",
        "π_old the same as ratios are taken against (μ, or as `anchor` has it), ρ = π / π_old,",
        "ℓ = log π_ref − log π, V the critic's value, R the return.",
    ]
    for group, names in groupby(MEANINGS, key=_group):
        lines += ["", f"## {HEADINGS[group]}", "", "| metric | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {escape_cell(MEANINGS[name])} |" for name in names]
    return "\n".join([*lines, ""])


def escape_cell(text: str) -> str:
    """`text` as one cell of a Markdown table."""
    return text.replace("|", r"\|").replace("\n", " ")


def _group(name: str) -> str:
    group, slash, _ = name.partition("/")
    return group if slash else ""


if __name__ == "__main__":
    print(document(), end="")
