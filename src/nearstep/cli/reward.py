"""`nearstep reward`: train a reward model. What the command needs beyond a valid configuration."""

import os
from collections.abc import Iterator
from pathlib import Path

from nearstep.cli.places import absent_places
from nearstep.cli.ppo import stay_offline_if_hub_is_silent
from nearstep.cli.reward_sources import reward_lacks
from nearstep.config.launcher import launch_problems
from nearstep.config.reward_model import RewardConfig
from nearstep.config.rewards import reward_count
from nearstep.config.settings import Problem

NOTE = (
    "Data with chosen and rejected answers teaches which is the better one; columns margin (by how much) and "
    "preference (how surely; 0.5 is a tie) are heeded. Where rewards score, the model learns their scores instead: of "
    "the answers in the data, or of those that it writes itself. The model is left in output_dir/reward, which "
    "`nearstep ppo --reward_model_path` takes, and what it is worth on unseen texts in output_dir/report.json."
)

REWARD_SETTINGS = ("reward_funcs", "reward_model_path", "reward_url")


def reward_begins(config: RewardConfig) -> str:
    """What the run is, in a line that needs no heavy library."""
    source = ", ".join(config.dataset_name) or "texts of its own"
    return f"a reward model from {config.model_name_or_path}, on {source}, into {config.output_dir}"


def run_reward(config: RewardConfig) -> None:
    """Train, report and save as the configuration says."""
    models = (config.model_name_or_path, config.reward_model_path)
    data = (*config.dataset_name, *config.eval_dataset_name)
    stay_offline_if_hub_is_silent([*data, *(model for model in models if model is not None)])
    from nearstep.reward_modeling.trainer import RewardModelTrainer

    RewardModelTrainer(args=config).train()


def reward_problems(config: RewardConfig) -> Iterator[Problem]:
    """What a run from the command line lacks: in Python, models and data may be given as objects instead."""
    yield from map(Problem, launch_problems(os.environ, config))
    if config.model_name_or_path is None:
        text = "model_name_or_path is missing: the model to start from, a folder or a hub name"
        yield Problem(text, ("model_name_or_path",))
    scored = reward_count(config) > 0
    if not config.dataset_name and not scored:
        text = (
            "dataset_name is missing: the preference pairs, a file, a folder or a hub name; or texts for reward_funcs"
        )
        yield Problem(text, ("dataset_name", *REWARD_SETTINGS))
    if config.objective == "regression" and not scored:
        text = "objective = regression learns scores, and no source gives any: give reward_funcs or reward_model_path"
        yield Problem(text, ("objective", *REWARD_SETTINGS))
    if scored:
        yield from reward_lacks(config)
    yield from absent_places({"model_name_or_path": config.model_name_or_path})
    for name, places in (("dataset_name", config.dataset_name), ("eval_dataset_name", config.eval_dataset_name)):
        for place in places:
            yield from absent_places({name: place})
    yield from absent_places({"resume_from_checkpoint": config.resume_from_checkpoint})
    if Path(config.output_dir).is_file():
        yield Problem(f"output_dir = {config.output_dir} is a file; give a folder", ("output_dir",))
    has_evaluation = config.eval_dataset_name or config.dataset_test_split or config.held_out_share
    if config.eval_steps is not None and not has_evaluation:
        text = "eval_steps needs eval_dataset_name, dataset_test_split or a held_out_share"
        yield Problem(text, ("eval_steps", "eval_dataset_name", "dataset_test_split", "held_out_share"))
