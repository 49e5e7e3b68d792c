"""`nearstep ppo`: train a policy with PPO. What the command needs beyond a valid configuration."""

import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from nearstep.cli.places import absent_places, absent_reward_files
from nearstep.cli.reward_sources import reward_lacks
from nearstep.common.import_order import import_unsloth
from nearstep.common.secrets import public_address
from nearstep.common.telling import tell
from nearstep.config.launched import problems_as_launched
from nearstep.config.ppo import PPOConfig
from nearstep.config.settings import Problem
from nearstep.reports.run_folder import checkpoints
from nearstep.rewards.builtin.spec import meaning, model_of

HUB_TIMEOUT_SECONDS = 5


def ppo_begins(config: PPOConfig) -> str:
    """What the run is, in a line that needs no heavy library."""
    rewards = [each for each in (config.reward_model_path, *config.reward_funcs) if each is not None]
    rewards += [] if config.reward_url is None else [public_address(config.reward_url)]
    policy = config.sft_model_path or config.model_name_or_path
    return f"PPO of {policy} on {', '.join(config.dataset_name)} against {', '.join(rewards)}, into {config.output_dir}"


def run_ppo(config: PPOConfig) -> None:
    """Train, save and report as the configuration says."""
    stay_offline_if_hub_is_silent([place for _, place in [*_models(config), *_data(config), *_reward_models(config)]])
    if config.model_loader == "unsloth":
        import_unsloth("model_loader = unsloth", on_cpu=config.use_cpu)
    from nearstep.trainer import PPOTrainer

    PPOTrainer(args=config).train()


def stay_offline_if_hub_is_silent(places: Iterable[str]) -> None:
    """Without a network, look for hub names in the cache alone: the hub's library would retry for most of a minute.

    Must come before that library is imported, for it reads the variable once.
    """
    hub_names = [place for place in places if not Path(place).exists() and not _is_checkpoint(place)]
    for name in hub_names:
        if Path(name).parent.is_dir() and "/" in name:
            tell(f"there is no {name} here, so it is taken for the name of a hub")
    if not hub_names or getproxies():
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), timeout=HUB_TIMEOUT_SECONDS).close()
    except OSError:
        print(f"The hub does not answer: {', '.join(hub_names)} can only come from its cache.", file=sys.stderr)
        os.environ["HF_HUB_OFFLINE"] = "1"


def _is_checkpoint(place: str) -> bool:
    """Whether it is RUN@UPDATE of a run that is here."""
    run, _, update = place.rpartition("@")
    return bool(run) and update.isdecimal() and Path(run).is_dir()


def _models(config: PPOConfig) -> list[tuple[str, str]]:
    places = {
        "model_name_or_path": config.model_name_or_path,
        "sft_model_path": config.sft_model_path,
        "ref_model_path": config.ref_model_path,
        "value_model_path": config.value_model_path,
    }
    return [(name, place) for name, place in places.items() if place is not None]


def _data(config: PPOConfig) -> list[tuple[str, str]]:
    settings = {"dataset_name": config.dataset_name, "eval_dataset_name": config.eval_dataset_name}
    return [(name, place) for name, places in settings.items() for place in places]


def _reward_models(config: PPOConfig) -> list[tuple[str, str]]:
    """The reward model, and models that built-in rewards read."""
    entries = [*config.reward_funcs, *config.eval_reward_funcs]
    function_models = [("reward_funcs", model_of(entry)) for entry in entries]
    paths = {"reward_model_path": config.reward_model_path, "eval_reward_model_path": config.eval_reward_model_path}
    places = [*paths.items(), *function_models]
    return [(name, place) for name, place in places if place is not None]


def ppo_problems(config: PPOConfig) -> Iterator[Problem]:
    """What a run from the command line lacks: in Python, models and data may be given as objects instead."""
    yield from map(Problem, problems_as_launched(os.environ, config))
    if config.model_name_or_path is None and config.sft_model_path is None:
        yield Problem(
            "model_name_or_path is missing: the policy to train, a folder or a hub name",
            ("model_name_or_path", "sft_model_path"),
        )
    if not config.dataset_name:
        yield Problem("dataset_name is missing: the prompts, a file, a folder or a hub name", ("dataset_name",))
    yield from reward_lacks(config)
    yield from absent_places({"eval_reward_model_path": config.eval_reward_model_path})
    yield from absent_reward_files(
        (entry for entry in config.eval_reward_funcs if meaning(entry) != "built-in"), "eval_reward_funcs"
    )
    for name, place in [*_models(config), *_data(config)]:
        yield from absent_places({name: place})
    used = checkpoints(Path(config.output_dir))
    if used and config.resume is None:
        yield Problem(
            f"output_dir = {config.output_dir} holds {len(used)} checkpoints of a run: give --resume auto to go on "
            "with it, another output_dir, or remove them",
            ("output_dir", "resume"),
        )
    if Path(config.output_dir).is_file():
        yield Problem(f"output_dir = {config.output_dir} is a file; give a folder", ("output_dir",))
    evaluation = ("eval_dataset_name", "dataset_test_split", "num_eval_rows")
    has_evaluation = config.eval_dataset_name or config.dataset_test_split or config.num_eval_rows
    if config.eval_steps is not None and not has_evaluation:
        text = "eval_steps needs eval_dataset_name, dataset_test_split or num_eval_rows"
        yield Problem(text, ("eval_steps", *evaluation))
