"""How far engine and trainer disagree on the same weights, and what a correction makes of it: always measured."""

from jaxtyping import Float, Int
from torch import Tensor

from nearstep.algorithm.correction import UNCORRECTED, CorrectionRule, unlimited
from nearstep.algorithm.kl import kl_estimate, log_ratios
from nearstep.algorithm.ragged import sum_by_row
from nearstep.algorithm.trust_regions import ActionRows
from nearstep.common.errors import TrainingError
from nearstep.metrics import EffectiveSampleSize, Max, Mean, Metric
from nearstep.training.axis_results import importance_problem
from nearstep.types import Rollout

FAR = 2.0  # a token whose ratio is beyond it, or below 1 / it, is one that the usual corrections change
CUT = 1e-4  # relative change of a weight from which a limit has changed it; rounding does less


def action_rows(rollout: Rollout) -> ActionRows:
    """How the actions of a rollout lie in rows and turns, and which weights sampled them."""
    return ActionRows(rollout.action_counts, rollout.policy_version, rollout.action_versions, rollout.turn_starts)


def mismatch_metrics(
    trainer: Float[Tensor, " actions"], engine: Float[Tensor, " actions"], action_counts: Int[Tensor, " rows"]
) -> dict[str, Metric]:
    """Log-probs of the trainer before the first step against those that the engine recorded."""
    ratio, kl = log_ratios(trainer, engine).exp(), kl_estimate(engine, trainer, "k3")
    of_rows = sum_by_row(kl.double(), action_counts) / action_counts.clamp(min=1)
    return {
        "policy/mismatch_kl": Mean.of(kl),
        "policy/mismatch_kl_worst": Max.of(of_rows),
        "policy/mismatch_far": Mean.of(((ratio > FAR) | (ratio < 1 / FAR)).float()),
        "policy/mismatch_ess": EffectiveSampleSize.of(ratio),
        "policy/importance_avg": Mean.of(ratio),
        "policy/importance_max": Max.of(ratio),
    }


def importance_metrics(
    rule: CorrectionRule,
    importance: Float[Tensor, " actions"],
    trainer: Float[Tensor, " actions"],
    engine: Float[Tensor, " actions"],
    rows: ActionRows,
) -> dict[str, Metric]:
    """What the correction changes; nothing where there is none."""
    if rule == UNCORRECTED:
        return {}
    free = unlimited(rule).importance(trainer, engine, rows)
    return {
        "policy/importance_cut": Mean.of(((importance - free).abs() > CUT * free).float()),
        "policy/importance_ess": EffectiveSampleSize.of(importance),
    }


def checked_importance(
    rule: CorrectionRule, trainer: Float[Tensor, " actions"], engine: Float[Tensor, " actions"], rows: ActionRows
) -> Float[Tensor, " actions"]:
    """The weights of a correction. Raises TrainingError where it returns none for the actions."""
    importance = rule.importance(trainer, engine, rows)
    problem = importance_problem(importance, len(engine))
    if problem is not None:
        raise TrainingError(f"correction {type(rule).__name__}: {problem}")
    return importance
