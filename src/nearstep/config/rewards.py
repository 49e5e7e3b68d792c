"""Which settings name the reward sources, how failing rewards are met, and which of them clash.

Training, `nearstep score` and `nearstep serve-reward` have them in common.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from nearstep.config.settings import Problem, Settings, option, without_effect


@dataclass(frozen=True, kw_only=True)
class LocalRewardSettings(Settings):
    """The reward sources on this machine."""

    reward_model_path: str | None = option(
        None, "reward model with one label, of any family and tokenizer", is_place=True
    )
    reward_funcs: tuple[str, ...] = option(
        (),
        "reward functions: built-in ones as name or name:parameter=value, yours as file.py:name, models as folders",
        is_place=True,
    )
    reward_weights: tuple[float, ...] | None = option(
        None, "one weight for each reward: the reward model first, reward_url last; 1 each if not given"
    )
    reward_workers: int | None = option(
        None,
        "run reward functions in this many processes, row by row; if not given, here, all rows at once",
        at_least=1,
    )
    reward_timeout_seconds: float | None = option(
        None, "longest time of a reward function for one row; it runs in reward_workers then, which are killed", above=0
    )


@dataclass(frozen=True, kw_only=True)
class RewardSettings(LocalRewardSettings):
    """The reward source elsewhere, and what happens when one fails."""

    reward_url: str | None = option(None, "a reward server, such as http://127.0.0.1:8000/score of serve-reward")
    reward_url_token_env: str | None = option(
        None, "reward_url: the environment variable that holds the token, never the token itself"
    )
    reward_url_timeout_seconds: float = option(60.0, "reward_url: longest time for one request", above=0)
    reward_url_retries: int = option(
        5, "reward_url: further tries after a broken connection or from an overloaded server", at_least=0
    )
    reward_url_batch_size: int = option(64, "reward_url: most rows in one request", at_least=1)
    on_reward_error: Literal["raise", "retry", "drop"] = option(
        "raise", "a reward fails on a row: end the run, ask again and then end it, or leave the row out of training"
    )
    reward_retries: int = option(2, "retry: how often a row is asked about again", at_least=1)


def reward_count(settings: LocalRewardSettings) -> int:
    """How many rewards the settings name."""
    has_url = isinstance(settings, RewardSettings) and settings.reward_url is not None
    return len(settings.reward_funcs) + (settings.reward_model_path is not None) + has_url


def local_reward_problems(settings: LocalRewardSettings) -> Iterator[Problem]:
    """Settings of rewards that contradict each other."""
    for source in settings.reward_funcs:
        if source.endswith((".py", ".py:")):
            yield Problem(f"reward_funcs: {source} names no function; write file.py:name", ("reward_funcs",))
    rewards = reward_count(settings)
    if settings.reward_weights is not None and len(settings.reward_weights) < rewards:
        yield Problem(
            f"reward_weights has {len(settings.reward_weights)} weight(s) for {rewards} rewards",
            ("reward_weights", "reward_funcs", "reward_model_path", "reward_url"),
        )


def reward_problems(settings: RewardSettings) -> Iterator[Problem]:
    """The same, and what is wrong with the address of a server."""
    yield from local_reward_problems(settings)
    if settings.reward_url is not None:
        yield from _url_problems(settings.reward_url)
    token = settings.reward_url_token_env
    if token is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", token):
        # What was given may be the token itself, so it is not repeated.
        text = "reward_url_token_env is not the name of an environment variable; put the token into one, and name that"
        yield Problem(text, ("reward_url_token_env",))


def reward_remarks(settings: RewardSettings) -> Iterator[str]:
    """Settings of rewards without effect, and a token that anybody could read on its way."""
    url_settings = ("reward_url_token_env", "reward_url_timeout_seconds", "reward_url_retries", "reward_url_batch_size")
    policy = f"with on_reward_error = {settings.on_reward_error}"
    yield from without_effect(
        settings,
        ("without reward_url", settings.reward_url is None, url_settings),
        (policy, settings.on_reward_error != "retry", ("reward_retries",)),
    )
    if settings.reward_url is not None and settings.reward_url_token_env is not None:
        url = urlsplit(settings.reward_url)
        if url.scheme != "https" and not is_loopback(url.hostname or ""):
            yield f"the token of reward_url goes to {url.hostname} unencrypted: use https"


def is_loopback(host: str) -> bool:
    """Whether a host name can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url_problems(address: str) -> Iterator[Problem]:
    """What is wrong with an address; it is not repeated, for it may hold a secret."""
    try:
        url = urlsplit(address)
        wrong = _wrong_with(url)
    except ValueError:  # which may quote a part of it
        wrong = "is no address such as http://127.0.0.1:8000/score"
    if wrong is not None:
        yield Problem(f"reward_url {wrong}", ("reward_url",))


def _wrong_with(url: SplitResult) -> str | None:
    _ = url.port  # raises ValueError where it is no number
    if url.scheme not in ("http", "https") or not url.hostname:
        return "must be an address such as http://127.0.0.1:8000/score"
    if url.username is not None or url.password is not None or url.query or url.fragment:
        return (
            "must have no user, password, query or fragment, which would be saved with the settings: put the token "
            "into an environment variable and name it by reward_url_token_env"
        )
    return None
