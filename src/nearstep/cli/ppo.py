"""`nearstep ppo`: train a policy with PPO. What the command needs beyond a valid configuration."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from nearstep.cli.judges import judge_lacks
from nearstep.cli.places import absent_places
from nearstep.config import PPOConfig
from nearstep.rewards.builtin.spec import model_of
from nearstep.settings import Problem

HUB_TIMEOUT_SECONDS = 5


def run_ppo(config: PPOConfig) -> None:
    """Train, save and report as the configuration says."""
    stay_offline_if_hub_is_silent(config)
    from nearstep.trainer import PPOTrainer

    PPOTrainer(args=config).train()


def stay_offline_if_hub_is_silent(config: PPOConfig) -> None:
    """Without a network, look for hub names in the cache alone: the hub's library would retry for most of a minute.

    Must come before that library is imported, for it reads the variable once.
    """
    places = [*_models(config).values(), *_data(config).values(), config.reward_model_path]
    places += [model_of(entry) for entry in config.reward_funcs]
    asked = [place for place in places if place and not Path(place).exists()]
    if not asked or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=HUB_TIMEOUT_SECONDS).close()
    except OSError:
        print(f"The hub does not answer: {', '.join(asked)} can only come from its cache.", file=sys.stderr)
        os.environ["HF_HUB_OFFLINE"] = "1"


def _models(config: PPOConfig) -> dict[str, str | None]:
    return {
        "model_name_or_path": config.model_name_or_path,
        "sft_model_path": config.sft_model_path,
        "ref_model_path": config.ref_model_path,
        "value_model_path": config.value_model_path,
    }


def _data(config: PPOConfig) -> dict[str, str | None]:
    return {"dataset_name": config.dataset_name, "eval_dataset_name": config.eval_dataset_name}


def ppo_problems(config: PPOConfig) -> Iterator[Problem]:
    """What a run from the command line lacks: in Python, models and data may be given as objects instead."""
    if config.model_name_or_path is None and config.sft_model_path is None:
        yield Problem(
            "model_name_or_path is missing: the policy to train, a folder or a hub name",
            ("model_name_or_path", "sft_model_path"),
        )
    if config.dataset_name is None:
        yield Problem("dataset_name is missing: the prompts, a file, a folder or a hub name", ("dataset_name",))
    yield from judge_lacks(config)
    yield from absent_places(_models(config) | _data(config))
    if Path(config.output_dir).is_file():
        yield Problem(f"output_dir = {config.output_dir} is a file; give a folder", ("output_dir",))
    evaluation = ("eval_dataset_name", "dataset_test_split")
    if config.eval_steps is not None and config.eval_dataset_name is None and config.dataset_test_split is None:
        yield Problem("eval_steps needs eval_dataset_name or dataset_test_split", ("eval_steps", *evaluation))
