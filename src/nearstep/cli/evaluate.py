"""`nearstep eval`: what the command needs beyond its settings, and what it prints."""

import json
from collections.abc import Iterator
from pathlib import Path

from nearstep.cli.generate import absent_models
from nearstep.cli.places import absent_places
from nearstep.cli.ppo import stay_offline_if_hub_is_silent
from nearstep.cli.reward_sources import reward_lacks
from nearstep.config.evaluation import EvalConfig
from nearstep.config.settings import Problem

NOTE = (
    "Every figure has n and an interval of 95 % over prompts. docs/evaluation.md has the formula, range and source of "
    "each metric, and examples: a policy by a reward model, a checkpoint on answers, a reward model on pairs, files."
)


def eval_begins(config: EvalConfig) -> str:
    """What is evaluated, in a line that needs no heavy library."""
    what = config.completions or config.model or config.reward_model_path or ", ".join(config.reward_funcs)
    on = f" on {config.dataset_name}" if config.dataset_name else ""
    return f"an evaluation of {what or 'nothing'}{on}, into {config.output_dir}"


def eval_problems(config: EvalConfig) -> Iterator[Problem]:
    """What cannot be done without, and places that are not there."""
    on_nothing = config.dataset_name is None and config.completions is None
    if config.model is None and config.completions is None and not config.has_rewards:
        text = "nothing to evaluate: give model_path, a file of completions, or a reward (reward_model_path)"
        yield Problem(text, ("model_path", "completions", "reward_model_path", "reward_funcs"))
    elif on_nothing and not config.lm_eval:
        yield Problem("nothing to evaluate on: give dataset_name, or completions", ("dataset_name", "completions"))
    if config.has_rewards:
        yield from reward_lacks(config)
    models = ("model_path", "base_model", "reference_model_path", "against")
    yield from absent_models({name: vars(config)[name] for name in models})
    yield from absent_places({name: vars(config)[name] for name in ("dataset_name", "completions", "lm_eval_include")})
    if Path(config.output_dir).is_file():
        yield Problem(f"output_dir = {config.output_dir} is a file; give a folder", ("output_dir",))


def run_evaluation(config: EvalConfig) -> None:
    """Evaluate, and show what was found."""
    places = (config.model, config.dataset_name, config.reward_model_path, config.reference_model_path)
    stay_offline_if_hub_is_silent([place for place in places if place is not None])
    from nearstep.evaluation.run_eval import run_eval

    results = run_eval(config)
    if config.json:
        print(json.dumps(results.record(), indent=1, ensure_ascii=False))
    else:
        results.print()
