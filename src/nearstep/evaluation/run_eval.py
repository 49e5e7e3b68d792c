"""`nearstep eval`, `run_eval`: a model, a file of completions or a reward model, measured by what there is."""

import dataclasses
from pathlib import Path

from nearstep.common.errors import ConfigError, DataError, RewardError
from nearstep.common.telling import quiet_libraries, tell
from nearstep.config.evaluation import EvalConfig
from nearstep.evaluation.completion_file import plain
from nearstep.evaluation.evidence import Evidence
from nearstep.evaluation.lm_eval_harness import run_lm_eval
from nearstep.evaluation.metric_table import TABLE, EvalMetric
from nearstep.evaluation.metrics.figures import Figure
from nearstep.evaluation.results import EvalResults
from nearstep.reports.records import JsonLines, Record
from nearstep.reports.run_folder import SETTINGS, RunFolder

COMPLETIONS = "completions.jsonl"


def run_eval(config: EvalConfig) -> EvalResults:
    """Evaluate as the settings say; write eval_results.json into output_dir and return the figures by name.

    A metric that was asked for and cannot be taken is None, and says why. Raises ConfigError, DataError, ModelError or
    RewardError for inputs that cannot be used.
    """
    _check(config)
    _compare_with_the_run(config)
    evidence = Evidence(config)
    with quiet_libraries():
        _check_data(evidence)
        figures: dict[str, Figure] = {}
        try:
            for metric in TABLE:
                if metric.name in config.wanted:
                    figures |= metric.measure(evidence)
                elif not config.wanted and _is_meant(metric, evidence):
                    figures |= _if_possible(metric, evidence)
            _keep_completions(evidence)
        finally:
            if config.has_rewards and "scorer" in vars(evidence) and evidence.scorer is not None:
                evidence.scorer.close()
        figures |= run_lm_eval(config) if config.lm_eval else {}
    results = EvalResults(figures, tuple(evidence.notes), _inputs(evidence))
    results.save(Path(config.output_dir))
    return results


def _check(config: EvalConfig) -> None:
    """Something must be evaluated, and on something."""
    if config.lm_eval and config.dataset_name is None and config.completions is None:
        return
    if config.model is None and config.completions is None and not config.has_rewards:
        raise ConfigError(
            "nothing to evaluate: give model_path, a file of completions, or a reward (reward_model_path, reward_funcs)"
        )
    if config.dataset_name is None and config.completions is None:
        raise ConfigError("nothing to evaluate on: give dataset_name, or completions")


def _compare_with_the_run(config: EvalConfig) -> None:
    """Say so where a run's model writes longer or shorter answers here than it was trained to."""
    if config.model is None or config.completions is not None:
        return
    place = Path(config.model.rpartition("@")[0] or config.model)
    run = next((folder for folder in (place, place.parent) if (folder / SETTINGS).is_file()), None)
    trained = None if run is None else RunFolder(run).settings.get("response_length")
    if isinstance(trained, int) and trained != config.response_length:
        tell(
            f"{run} was trained with response_length = {trained}; here completions have up to {config.response_length} "
            f"tokens. --response_length {trained} measures it as it was trained"
        )


def _check_data(evidence: Evidence) -> None:
    """The rows hold what data_task_type says."""
    kind = evidence.config.data_task_type
    if kind == "preference" and not evidence.pairs and not evidence.many_answers:
        raise DataError("data_task_type = preference: the rows hold no preference pairs")
    if kind == "sft" and evidence.model is not None and evidence.table is not None and evidence.data_answers is None:
        raise DataError("data_task_type = sft: the rows hold no answers (column completion, reference or messages)")


def _is_meant(metric: EvalMetric, evidence: Evidence) -> bool:
    """Whether a metric makes sense unasked: free texts are hardly ever their references word for word."""
    config = evidence.config
    if metric.name != "accuracy" or config.task_type != "text" or config.correctness is not None:
        return True
    return evidence.answers is not None and "answer" in evidence.answers.prompts.columns


def _if_possible(metric: EvalMetric, evidence: Evidence) -> dict[str, Figure]:
    """The figures of a metric that nobody asked for: those that there are."""
    try:
        figures = metric.measure(evidence)
    except RewardError as error:
        if "pip install" not in str(error):  # a library that is not there is no failure of what is evaluated
            raise
        evidence.notes.append(f"{metric.name} was left out: {error}")
        return {}
    return {name: figure for name, figure in figures.items() if figure.value is not None}


def _keep_completions(evidence: Evidence) -> None:
    """What the model wrote, with its rewards, for people to read."""
    if evidence.config.completions is not None or "answers" not in vars(evidence) or evidence.answers is None:
        return
    answers, scores = evidence.answers, vars(evidence).get("scores")
    folder = Path(evidence.config.output_dir)
    path = folder / COMPLETIONS
    path.unlink(missing_ok=True)
    rows: list[Record] = []
    for row, text in enumerate(answers.texts):
        rows.append(
            {
                "prompt": answers.prompts.inputs[row],
                "completion": text,
                "finished": answers.finished[row],
                **({} if scores is None else {"score": plain(scores.totals[row])}),
                **{
                    name: plain(values[row])
                    for name, values in answers.prompts.columns.items()
                    if name not in ("prompt", "completion", "finished", "score")
                },
            }
        )
    file = JsonLines(path)
    file.write(rows)
    file.close()


def _inputs(evidence: Evidence) -> dict[str, object]:
    """What was evaluated, and with which settings."""
    config = evidence.config
    tell(f"results: {Path(config.output_dir) / 'eval_results.json'}")
    return {
        "model": None if evidence.model is None else evidence.model.place,
        "dataset": config.dataset_name,
        "completions": config.completions,
        "rows": None if evidence.table is None else len(evidence.table),
        "settings": {name: plain(value) for name, value in dataclasses.asdict(config).items()},
    }
