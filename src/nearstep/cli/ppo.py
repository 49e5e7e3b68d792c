"""`nearstep ppo`: train a policy with PPO. What the command needs beyond a valid configuration."""

from collections.abc import Iterator
from pathlib import Path

from nearstep.config import PPOConfig
from nearstep.settings import Problem

_DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")


def run_ppo(config: PPOConfig) -> None:
    """Train, save and report as the configuration says."""
    from nearstep.trainer import PPOTrainer

    PPOTrainer(args=config).train()


def ppo_problems(config: PPOConfig) -> Iterator[Problem]:
    """What a run from the command line lacks: in Python, models and data may be given as objects instead."""
    yield from _missing(config)
    yield from _absent_paths(config)
    sources = ("reward_model_path", "reward_funcs")
    rewards = len(config.reward_funcs) + (config.reward_model_path is not None)
    if config.reward_weights is not None and 0 < rewards < len(config.reward_weights):
        yield Problem(
            f"reward_weights has {len(config.reward_weights)} weights for {rewards} reward(s)",
            ("reward_weights", *sources),
        )
    evaluation = ("eval_dataset_name", "dataset_test_split")
    if config.eval_steps is not None and config.eval_dataset_name is None and config.dataset_test_split is None:
        yield Problem("eval_steps needs eval_dataset_name or dataset_test_split", ("eval_steps", *evaluation))


def _missing(config: PPOConfig) -> Iterator[Problem]:
    if config.model_name_or_path is None and config.sft_model_path is None:
        yield Problem(
            "model_name_or_path is missing: the policy to train, a folder or a hub name",
            ("model_name_or_path", "sft_model_path"),
        )
    if config.dataset_name is None:
        yield Problem("dataset_name is missing: the prompts, a file, a folder or a hub name", ("dataset_name",))
    if config.reward_model_path is None and not config.reward_funcs:
        yield Problem(
            "no reward: give reward_model_path, or reward_funcs as file.py:name",
            ("reward_model_path", "reward_funcs"),
        )


def _absent_paths(config: PPOConfig) -> Iterator[Problem]:
    models = {
        "model_name_or_path": config.model_name_or_path,
        "sft_model_path": config.sft_model_path,
        "ref_model_path": config.ref_model_path,
        "value_model_path": config.value_model_path,
        "reward_model_path": config.reward_model_path,
    }
    data = {"dataset_name": config.dataset_name, "eval_dataset_name": config.eval_dataset_name}
    for name, place in (models | data).items():
        if place is not None and _is_local(place) and not Path(place).exists():
            yield Problem(f"{name} = {place}: no such file or folder", (name,))
    for source in config.reward_funcs:
        file = source.rpartition(":")[0] or source
        if (file.endswith(".py") or _is_local(file)) and not Path(file).exists():
            yield Problem(f"reward_funcs = {source}: no such file or folder {file}", ("reward_funcs",))
    if Path(config.output_dir).is_file():
        yield Problem(f"output_dir = {config.output_dir} is a file; give a folder", ("output_dir",))


def _is_local(place: str) -> bool:
    """Whether a name can only mean a place on this machine; a hub name is `name` or `owner/name`."""
    if place.startswith((".", "/", "~")) or place.endswith(_DATA_FILES) or place.count("/") > 1:
        return True
    return "/" in place and Path(place).parent.is_dir()
