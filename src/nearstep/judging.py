"""Which rewards judge: settings and objects of the user become sources, in training and outside it alike."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.config_rewards import JudgeSettings, OwnJudgeSettings
from nearstep.errors import ConfigError, ModelError
from nearstep.models.load import load_scalar_model, load_tokenizer
from nearstep.models.reward import make_scorer
from nearstep.models.roles import transformers_model
from nearstep.rewards.failures import OnError, RewardSource
from nearstep.rewards.functions import FunctionReward, RewardFunction, function_name
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.loading import load_function
from nearstep.rewards.model import ModelReward
from nearstep.rewards.worker_reward import WorkerReward, deliver
from nearstep.rewards.workers import WorkerPool

RewardEntry: TypeAlias = Callable[..., Any] | nn.Module | str

MOST_WORKERS = 8  # where reward_workers is not given


@dataclass(frozen=True)
class NamedFunction:
    """A reward function, and the file.py:name that it was given by, where it was."""

    function: RewardFunction
    file: str | None


@dataclass(frozen=True)
class Loading:
    """How reward models are loaded and run."""

    dtype: torch.dtype
    trust_remote_code: bool
    autocast: bool
    max_tokens: int
    place: Callable[[nn.Module], nn.Module]  # puts a model where it shall run
    seed: int


JudgeEntry: TypeAlias = NamedFunction | nn.Module | str  # a string is a reward model's folder or hub name


def judge_entries(
    settings: OwnJudgeSettings,
    *,
    columns: Collection[str] | None,
    reward_model: nn.Module | str | None = None,
    reward_funcs: Sequence[RewardEntry] = (),
) -> list[JudgeEntry]:
    """All rewards but reward_url, in the order of reward_weights; functions are loaded and checked here.

    Objects of the user stand before what the settings name. Raises ConfigError if there is no reward at all,
    RewardError for a file or name that is not there, and for a function that requires what `columns` do not give
    (None where they are not known yet).
    """
    given: list[RewardEntry] = [*reward_funcs, *settings.reward_funcs]
    first = reward_model if reward_model is not None else settings.reward_model_path
    if first is not None:
        given.insert(0, first)
    if not given and not (isinstance(settings, JudgeSettings) and settings.reward_url is not None):
        raise ConfigError(
            "no reward: pass reward_model or reward_funcs, or set reward_model_path, reward_funcs or reward_url"
        )
    entries = [_entry(one) for one in given]
    for entry in entries:
        if isinstance(entry, NamedFunction):
            function = FunctionReward(entry.function)
            if columns is not None:
                function.check(columns)
    return entries


def _entry(given: RewardEntry) -> JudgeEntry:
    if isinstance(given, str):
        return NamedFunction(load_function(given), given) if re.search(r"\.py:\w+$", given) else given
    return given if isinstance(given, nn.Module) else NamedFunction(given, None)


def load_reward_model(entry: JudgeEntry, loading: Loading) -> PreTrainedModel | None:
    """The reward model of an entry; None for a function."""
    if isinstance(entry, str):
        return load_scalar_model(
            entry, role="reward_model", dtype=loading.dtype, trust_remote_code=loading.trust_remote_code
        )
    return transformers_model(entry, "reward_model") if isinstance(entry, nn.Module) else None


def make_judges(
    settings: OwnJudgeSettings,
    judges: Sequence[tuple[JudgeEntry, PreTrainedModel | None]],
    tokenizer_of: Callable[[PreTrainedModel], PreTrainedTokenizerBase],
    policy: TokenizerIdentity,
    loading: Loading,
) -> list[RewardSource]:
    """Every entry with its model as a source of rewards, and reward_url behind them.

    `policy` is the tokenizer that writes the ids of rollouts. Raises RewardError if a function cannot be loaded in a
    worker process where the settings ask for one, ConfigError if a token is missing.
    """
    functions = iter(_functions(settings, [entry for entry, _ in judges if isinstance(entry, NamedFunction)]))
    sources: list[RewardSource] = [
        next(functions) if model is None else model_judge(model, tokenizer_of(model), policy, loading)
        for _, model in judges
    ]
    if isinstance(settings, JudgeSettings) and settings.reward_url is not None:
        sources.append(_remote(settings, settings.reward_url, policy, loading.seed))
    return sources


def on_error(settings: JudgeSettings) -> OnError:
    """What the settings want when a reward fails."""
    return OnError(settings.on_reward_error, settings.reward_retries)


def model_judge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: TokenizerIdentity, loading: Loading
) -> ModelReward:
    """A reward model, read by its own tokenizer, as a source of rewards."""
    text = model.config.get_text_config()
    scorer = make_scorer(
        loading.place(model),
        role="reward_model",
        pad_token_id=tokenizer.pad_token_id,
        max_tokens=loading.max_tokens,
        autocast=loading.autocast,
    )
    return ModelReward(
        Path(model.config.name_or_path or "reward_model").name,
        scorer,
        tokenizer=tokenizer,
        policy=policy,
        vocabulary_size=text.vocab_size,
        max_length=text.to_dict().get("max_position_embeddings"),
    )


def reward_tokenizer(
    model: PreTrainedModel, given: PreTrainedTokenizerBase | None, policy: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """A reward model's tokenizer: as given, else from where the model came; one made in memory shares the policy's.

    Raises ModelError where that cannot be.
    """
    if given is not None:
        return given
    if model.config.name_or_path:
        return load_tokenizer(model.config.name_or_path, role="reward_model")
    known = model.config.get_text_config().vocab_size
    if policy is None or known < len(policy):
        raise ModelError(
            f"reward_model: it was made in memory and knows {known} tokens, which is less than the policy's tokenizer "
            "has. Pass reward_processing_class, its own tokenizer."
        )
    return policy


def _functions(settings: OwnJudgeSettings, entries: Sequence[NamedFunction]) -> list[RewardSource]:
    """Functions in this process, or in workers if the settings name a number of them or a time limit."""
    judges = [FunctionReward(entry.function) for entry in entries]
    if not judges or (settings.reward_workers is None and settings.reward_timeout_seconds is None):
        return list(judges)
    cores = os.cpu_count() or 1
    deliveries = [deliver(e.function, function_name(e.function), e.file) for e in entries]
    pool = WorkerPool(deliveries, settings.reward_workers or min(cores, MOST_WORKERS), settings.reward_timeout_seconds)
    pool.check()
    return [WorkerReward(judge, number, pool) for number, judge in enumerate(judges)]


def _remote(settings: JudgeSettings, url: str, policy: TokenizerIdentity, seed: int) -> RewardSource:
    from nearstep.rewards.remote import RemoteReward, Secret, Server

    server = Server(
        url,
        token=None if settings.reward_url_token_env is None else Secret(token_from(settings.reward_url_token_env)),
        timeout_seconds=settings.reward_url_timeout_seconds,
        retries=settings.reward_url_retries,
        batch_size=settings.reward_url_batch_size,
        seed=seed,
    )
    return RemoteReward(server, policy)


def token_from(variable: str) -> str:
    """The token in an environment variable. Raises ConfigError if it is not set."""
    token = os.environ.get(variable, "").strip()
    if not token:
        raise ConfigError(f"the environment variable {variable}, which shall hold a token, is not set")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(f"the token in the environment variable {variable} has characters that no header can carry")
    return token
