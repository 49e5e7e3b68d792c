"""Which settings say how a policy is evaluated while it trains, which evaluation is the best, and when a run ends."""

from collections.abc import Iterator
from dataclasses import dataclass

from nearstep.config.settings import Problem, Settings, option, without_effect

BEST_METRIC = "objective/scores"
TRAINING = "train/"
# Groups of metrics that evaluations have as well; the others are training's alone.
EVALUATED_GROUPS = ("objective", "response", "reward", "win_rate", "judge")
TRAINING_GROUPS = ("policy", "loss", "value", "val", "optimizer", "time")
# Beginnings of the names of metrics of which more, or less, is better. Of all others the user says so.
MORE = (
    "objective/scores", "objective/rlhf_reward", "objective/non_score_reward", "reward/", "win_rate/", "judge/",
    "val/explained_variance", "val/num_eos_tokens", "eps", "tokens_per_second",
)  # fmt: skip
LESS = (
    "objective/kl", "response/truncated", "response/left_out", "loss/policy_avg", "loss/value_avg", "policy/approxkl",
    "policy/mismatch_kl", "policy/prob_diff", "val/ratio_max_gap", "val/ratio_var", "optimizer/skipped_steps",
    "seconds",
)  # fmt: skip
SHARES_OF_FAILURE = ("_none", "_failed", "_stderr", "_std")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings(Settings):
    """How the policy is evaluated while it trains, what is kept as the best, and what ends the run early."""

    eval_on_start: bool = option(False, "evaluate before the first update too")
    eval_temperature: float = option(0.0, "of evaluation's responses; 0: the most probable token each time", at_least=0)
    eval_num_generations: int = option(
        1, "responses to each evaluation prompt; more than one need an eval_temperature", at_least=1
    )
    eval_seed: int | None = option(
        None, "draws the prompts to evaluate on, and samples responses to them; seed if not given", at_least=0
    )
    eval_reward_model_path: str | None = option(
        None, "reward model that judges evaluations alone, unseen by training (eval/judge/…)", is_place=True
    )
    eval_reward_funcs: tuple[str, ...] = option(
        (), "reward functions that judge evaluations alone, written as reward_funcs", is_place=True
    )
    eval_reference_column: str | None = option(
        None,
        "column with answers that evaluations are compared with; reference, completion or chosen, if not given",
    )
    metric_for_best_model: str | None = option(
        None,
        f"what keep_best and early_stopping_patience go by: a metric of evaluations, or train/NAME; {BEST_METRIC} "
        "if not given",
    )
    greater_is_better: bool | None = option(
        None, "whether more of metric_for_best_model is better; known for scores, win rates, KL and losses"
    )
    early_stopping_patience: int | None = option(
        None, "end the run after this many evaluations without a better metric_for_best_model", at_least=1
    )
    early_stopping_threshold: float = option(0.0, "how much better an evaluation must be to count", at_least=0)
    stop_kl: float | None = option(None, "end the run once objective/kl of an update is above this", above=0)
    stop_score: float | None = option(
        None,
        "end the run once objective/scores reaches this: of an evaluation with eval_steps, else of an update",
    )
    stop_patience: int = option(
        1, "how many times in a row stop_kl or stop_score must hold before the run ends", at_least=1
    )


def more_is_better(name: str) -> bool | None:
    """Whether more of a metric is better; None where it depends."""
    known = name if _is_known(name) else name.partition("/")[2]
    if known.endswith(SHARES_OF_FAILURE):
        return False
    if known.startswith(MORE):
        return True
    return False if known.startswith(LESS) or known.endswith("loss") else None


def _is_known(name: str) -> bool:
    return name.startswith((*MORE, *LESS))


def plain_name(name: str) -> tuple[str, bool]:
    """The name without what says whose it is, and whether it is training's."""
    for prefix in ("eval/", "eval_"):
        if name.startswith(prefix):
            return name.removeprefix(prefix), False
    for prefix in (TRAINING, "train_"):
        if name.startswith(prefix):
            return name.removeprefix(prefix), True
    return name, False


def evaluation_problems(settings: EvaluationSettings, eval_steps: int | None) -> Iterator[Problem]:
    """Settings of evaluation that contradict each other."""
    if settings.eval_num_generations > 1 and settings.eval_temperature == 0:
        yield Problem(
            f"eval_num_generations = {settings.eval_num_generations} responses would be one and the same: give an "
            "eval_temperature above 0",
            ("eval_num_generations", "eval_temperature"),
        )
    for source in settings.eval_reward_funcs:
        if source.endswith((".py", ".py:")):
            yield Problem(f"eval_reward_funcs: {source} names no function; write file.py:name", ("eval_reward_funcs",))
    name, of_training = plain_name(settings.metric_for_best_model or BEST_METRIC)
    if settings.greater_is_better is None and more_is_better(name) is None:
        yield Problem(
            f"metric_for_best_model = {settings.metric_for_best_model}: say by greater_is_better whether more of it is "
            "better",
            ("metric_for_best_model", "greater_is_better"),
        )
    if settings.early_stopping_patience is None:
        return
    if eval_steps is None:
        yield Problem(
            "early_stopping_patience counts evaluations: give eval_steps", ("early_stopping_patience", "eval_steps")
        )
    if of_training or name.partition("/")[0] in TRAINING_GROUPS:
        yield Problem(
            f"early_stopping_patience counts evaluations, and metric_for_best_model = {settings.metric_for_best_model} "
            "is training's: give a metric of evaluations",
            ("early_stopping_patience", "metric_for_best_model"),
        )


def evaluation_remarks(settings: EvaluationSettings, *, keep_best: bool) -> Iterator[str]:
    """Settings of evaluation without effect."""
    no_patience = settings.early_stopping_patience is None
    yield from without_effect(
        settings,
        (
            "without keep_best and early_stopping_patience",
            not keep_best and no_patience,
            ("metric_for_best_model", "greater_is_better"),
        ),
        ("without early_stopping_patience", no_patience, ("early_stopping_threshold",)),
        ("without stop_kl and stop_score", (settings.stop_kl, settings.stop_score) == (None, None), ("stop_patience",)),
    )
