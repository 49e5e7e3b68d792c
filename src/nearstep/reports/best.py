"""What the best of a run is chosen by."""

from dataclasses import dataclass

from nearstep.config.evaluation import BEST_METRIC, TRAINING_GROUPS, EvaluationSettings, more_is_better, plain_name


@dataclass(frozen=True)
class BestMetric:
    """A metric, and which way is better."""

    name: str  # as evaluations name it, or training does
    of_training: bool
    greater: bool


def best_metric(settings: EvaluationSettings, *, has_eval: bool, sets: tuple[str, ...] = ()) -> BestMetric:
    """What `metric_for_best_model` means; of several evaluation sets the first is meant where none is named."""
    name, of_training = plain_name(settings.metric_for_best_model or BEST_METRIC)
    of_training = of_training or not has_eval or name.partition("/")[0] in TRAINING_GROUPS
    greater = settings.greater_is_better
    if greater is None:
        greater = more_is_better(name) is not False
    if sets and not of_training and name.partition("/")[0] not in sets:
        name = f"{sets[0]}/{name}"
    return BestMetric(name, of_training, greater)
