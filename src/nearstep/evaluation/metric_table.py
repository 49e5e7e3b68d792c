"""Which metrics `nearstep eval` has: the figures of each, with formula, range, direction and source."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from nearstep.evaluation import measures
from nearstep.evaluation.evidence import Evidence
from nearstep.evaluation.metrics.figures import Figure

Better: TypeAlias = Literal["high", "low", "–"]


@dataclass(frozen=True)
class Described:
    """One figure: its name, `*` for a part that depends on the data, and what it is."""

    name: str
    formula: str
    range: str
    better: Better
    counts: str  # what n is
    source: str = ""


@dataclass(frozen=True)
class EvalMetric:
    """A name for --metrics, what it takes, and its figures."""

    name: str
    needs: str
    measure: Callable[[Evidence], dict[str, Figure]]
    figures: tuple[Described, ...]


TABLE: tuple[EvalMetric, ...] = (
    EvalMetric(
        "perplexity",
        "a model and answers in the data (`completion`, `reference`, `chosen`, or the last message of `messages`)",
        measures.perplexity,
        (
            Described(
                "perplexity",
                "exp(Σ −log p(token) / Σ tokens), over the tokens of all answers and their ends; prompts and padding "
                "count not; at temperature 1",
                "1 to ∞", "low", "tokens", "Jelinek et al. 1977",
            ),
            Described(
                "bits_per_byte",
                "Σ −log₂ p(token) / Σ bytes of the answers in UTF-8; comparable between tokenizers",
                "0 to ∞", "low", "bytes", "2101.00027",
            ),
        ),
    ),
    EvalMetric(
        "reward_accuracy",
        "preference pairs, and rewards or a model",
        measures.reward_accuracy,
        (
            Described(
                "reward_accuracy",
                "share of pairs whose better answer has the higher reward, ties ½; without rewards by "
                "0.1·(log π − log π_ref), or by log π where there is no reference model either",
                "0 to 1", "high", "pairs", "2009.01325, 2305.18290",
            ),
            Described("reward_accuracy/*", "the same within a subset (column `subset`)", "0 to 1", "high", "pairs", ""),
            Described("reward_margin", "mean of reward(chosen) − reward(rejected)", "−∞ to ∞", "high", "pairs", ""),
        ),
    ),
    EvalMetric(
        "rewardbench",
        "a file of RewardBench 1 (column `subset`) or 2 (lists of answers), and rewards or a model",
        measures.rewardbench,
        (
            Described(
                "rewardbench/*",
                "1: share of pairs, ties ½. 2: 1 where a right answer alone has the highest reward, 1/k where it "
                "shares it with k − 1 others, else 0",
                "0 to 1", "high", "prompts", "2403.13787, 2506.01937",
            ),
            Described(
                "rewardbench/Ties",
                "0.3·acc(tied) + 0.3·acc(ref) + 0.2·mean[gap_tied > spread] + 0.2·mean[min(gap_ref, gap_tied) > "
                "spread] + 0.01·mean tanh(min(gap_ref, gap_tied) / spread − 1); gap = worst right − best wrong answer, "
                "spread = best − worst right answer of the tied prompt, acc = share with gap > 0; the last term is 0 "
                "where the spread is",
                "−0.01 to 1.01", "high", "prompts", "2506.01937",
            ),
            Described("rewardbench", "mean of the subsets, each weighing the same", "0 to 1", "high", "prompts", ""),
        ),
    ),
    EvalMetric(
        "reward",
        "completions and rewards",
        measures.reward,
        (
            Described("reward_mean", "mean of the weighted sum of all rewards", "that of the rewards", "high",
                      "completions"),
            Described("reward_std", "standard deviation over completions (over n)", "0 to ∞", "–", "completions"),
            Described("reward_median", "middle value", "that of the rewards", "high", "completions"),
            Described("reward/*", "mean of one of several rewards, before its weight", "that of the reward", "high",
                      "completions"),
        ),
    ),
    EvalMetric(
        "kl",
        "a model, reference_model_path, and completions, which should be the model's own",
        measures.kl,
        (
            Described(
                "kl",
                "mean over completions of Σ_t KL(π(·|t) ‖ π_ref(·|t)), over the whole vocabulary, nats; both at the "
                "temperature of sampling, top_p and top_k left aside",
                "0 to ∞", "–", "completions", "the exact form of 1909.08593's penalty",
            ),
            Described("kl_per_token", "Σ of the same / Σ tokens, nats", "0 to ∞", "–", "tokens"),
        ),
    ),
    EvalMetric(
        "entropy",
        "a model and completions",
        measures.entropy,
        (
            Described(
                "entropy",
                "mean over tokens of −Σ_v p(v) log p(v), nats, at the temperature of sampling",
                "0 to log |V|", "–", "tokens", "Shannon 1948",
            ),
        ),
    ),
    EvalMetric(
        "win_rate",
        "completions, rewards, and references or `against`",
        measures.win_rate,
        (
            Described(
                "win_rate/*",
                "share of completions whose reward is higher than that of the other side (`reference`, `against`), "
                "ties ½",
                "0 to 1", "high", "comparisons", "2009.01325",
            ),
            Described(
                "lc_win_rate/*",
                "σ(θ) of P(win) = σ(θ + φ·tanh(Δ / sd(Δ))), Δ the difference in characters; ridge φ²/2, fitted by "
                "Newton's method: the win rate at equal length",
                "0 to 1", "high", "comparisons", "2404.04475",
            ),
        ),
    ),
    EvalMetric(
        "accuracy",
        "completions, and a column `answer` or `reference` (task_type math: nearstep[math])",
        measures.accuracy,
        (
            Described(
                "accuracy",
                "share of right completions: word for word (text), equal by mathematics (math), all tests passed "
                "(code), or 1 by the function `correctness`",
                "0 to 1", "high", "completions", "math-verify",
            ),
            Described("avg@*", "the same, under its name where there are n completions of a prompt", "0 to 1", "high",
                      "completions"),
            Described(
                "maj@*",
                "share of prompts whose most frequent answer is right; answers with as many votes share",
                "0 to 1", "high", "prompts", "2203.11171",
            ),
            Described(
                "pass@*", "mean over prompts of 1 − C(n − c, k) / C(n, k), c of n completions right", "0 to 1", "high",
                "prompts", "2107.03374",
            ),
        ),
    ),
    EvalMetric(
        "rouge",
        "completions and references (nearstep[metrics])",
        measures.rouge,
        (
            Described("rouge1", "F1 of shared words", "0 to 1", "high", "completions", "Lin 2004"),
            Described("rouge2", "F1 of shared pairs of words", "0 to 1", "high", "completions", "Lin 2004"),
            Described("rougeL", "F1 of the longest common subsequence", "0 to 1", "high", "completions", "Lin 2004"),
        ),
    ),
    EvalMetric(
        "bleu",
        "completions and references (nearstep[metrics])",
        measures.bleu,
        (
            Described("bleu", "mean sentence BLEU-4 of sacrebleu over 100", "0 to 1", "high", "completions",
                      "Papineni et al. 2002, 1804.08771"),
        ),
    ),
    EvalMetric(
        "diversity",
        "completions (self_bleu: nearstep[metrics])",
        measures.diversity,
        (
            Described("distinct_1", "different words / words, of all completions together; falls with their number",
                      "0 to 1", "high", "completions", "1510.03055"),
            Described("distinct_2", "the same of pairs of words", "0 to 1", "high", "completions", "1510.03055"),
            Described("self_bleu", "mean BLEU of a completion against the others of its prompt (of all where "
                      "prompts have one), 50 at most", "0 to 1", "low", "completions", "1802.01886"),
            Described("repetition", "mean share of word triples that came before in the same completion", "0 to 1",
                      "low", "completions"),
        ),
    ),
    EvalMetric(
        "length",
        "completions",
        measures.length,
        (
            Described("response_length", "mean number of tokens, the end included", "0 to ∞", "–", "completions"),
            Described("response_characters", "mean number of characters", "0 to ∞", "–", "completions"),
            Described(
                "truncated",
                "share that did not end by itself; unknown of a file without the column `finished`",
                "0 to 1",
                "low",
                "completions",
            ),
            Described("empty", "share without text", "0 to 1", "low", "completions"),
        ),
    ),
)  # fmt: skip


HARNESS = Described("lm_eval/*", "a metric of a task of lm-evaluation-harness", "that of the metric", "–", "documents")


def described(name: str) -> Described:
    """What is known of a figure, of those whose names have parts the most exact."""
    known = {HARNESS.name: HARNESS} | {each.name: each for metric in TABLE for each in metric.figures}
    group = name.partition("/")[0] + "/*" if "/" in name else name.partition("@")[0] + "@*"
    return known[name] if name in known else known[group]
