"""`nearstep ppo`: train a policy with PPO. What the command needs beyond a valid configuration."""

import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from nearstep.config import PPOConfig
from nearstep.settings import Problem

HUB_TIMEOUT_SECONDS = 5
_DATA_FILES = (".jsonl", ".json", ".csv", ".parquet")


def run_ppo(config: PPOConfig) -> None:
    """Train, save and report as the configuration says."""
    stay_offline_if_hub_is_silent([place for _, place in [*_models(config), *_data(config)]])
    from nearstep.trainer import PPOTrainer

    PPOTrainer(args=config).train()


def stay_offline_if_hub_is_silent(places: Iterable[str]) -> None:
    """Without a network, look for hub names in the cache alone: the hub's library would retry for most of a minute.

    Must come before that library is imported, for it reads the variable once.
    """
    asked = [place for place in places if not Path(place).expanduser().exists()]
    if not asked or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=HUB_TIMEOUT_SECONDS).close()
    except OSError:
        print(f"The hub does not answer: {', '.join(asked)} can only come from its cache.", file=sys.stderr)
        os.environ["HF_HUB_OFFLINE"] = "1"


def _models(config: PPOConfig) -> list[tuple[str, str]]:
    places = {
        "model_name_or_path": config.model_name_or_path,
        "sft_model_path": config.sft_model_path,
        "ref_model_path": config.ref_model_path,
        "value_model_path": config.value_model_path,
        "reward_model_path": config.reward_model_path,
    }
    return [(name, place) for name, place in places.items() if place is not None]


def _data(config: PPOConfig) -> list[tuple[str, str]]:
    settings = {"dataset_name": config.dataset_name, "eval_dataset_name": config.eval_dataset_name}
    return [(name, place) for name, places in settings.items() for place in places]


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
    evaluation = ("eval_dataset_name", "dataset_test_split", "num_eval_rows")
    has_evaluation = config.eval_dataset_name or config.dataset_test_split or config.num_eval_rows
    if config.eval_steps is not None and not has_evaluation:
        text = "eval_steps needs eval_dataset_name, dataset_test_split or num_eval_rows"
        yield Problem(text, ("eval_steps", *evaluation))


def _missing(config: PPOConfig) -> Iterator[Problem]:
    if config.model_name_or_path is None and config.sft_model_path is None:
        yield Problem(
            "model_name_or_path is missing: the policy to train, a folder or a hub name",
            ("model_name_or_path", "sft_model_path"),
        )
    if not config.dataset_name:
        yield Problem("dataset_name is missing: the prompts, a file, a folder or a hub name", ("dataset_name",))
    if config.reward_model_path is None and not config.reward_funcs:
        yield Problem(
            "no reward: give reward_model_path, or reward_funcs as file.py:name",
            ("reward_model_path", "reward_funcs"),
        )


def _absent_paths(config: PPOConfig) -> Iterator[Problem]:
    for name, place in [*_models(config), *_data(config)]:
        if _is_local(place) and not Path(place).expanduser().exists():
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
