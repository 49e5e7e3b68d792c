"""Which reward sources a run has: settings and objects of the user become sources, in training and outside it alike."""

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.access_tokens import Secret, token_from
from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.plugins import need_package
from nearstep.common.trust import Trust
from nearstep.config.rewards import LocalRewardSettings, RewardSettings
from nearstep.models.adapters import as_peft_model, is_adapted, with_adapters_merged
from nearstep.models.head_bias import bias_note
from nearstep.models.limits import Limits
from nearstep.models.load import load_scalar_model
from nearstep.models.offload import Offload
from nearstep.models.reward_model import make_scorer
from nearstep.models.roles import transformers_model
from nearstep.models.tokenizers import load_tokenizer
from nearstep.rewards.ask import OnError
from nearstep.rewards.builtin.spec import meaning
from nearstep.rewards.functions import FunctionReward, Prepares, RewardFunction, function_name
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.idle import IdleScorer
from nearstep.rewards.loading import load_function
from nearstep.rewards.model import ModelReward
from nearstep.rewards.protocol import RewardSource
from nearstep.rewards.workers.pool import WorkerPool
from nearstep.rewards.workers.source import WorkerReward, function_spec

RewardEntry: TypeAlias = Callable[..., Any] | nn.Module | str

NO_POLICY = TokenizerIdentity("", None)  # every batch says whose ids it brings
MOST_WORKERS = 8  # where reward_workers is not given


@dataclass(frozen=True)
class NamedFunction:
    """A reward function, and the text that it was given by, where it was: file.py:name or a built-in one."""

    function: RewardFunction
    spec: str | None


@dataclass(frozen=True)
class RewardModelOptions:
    """How reward models are loaded and run."""

    dtype: torch.dtype
    trust: Trust
    autocast: bool
    max_tokens: int
    place: Callable[[nn.Module], nn.Module]  # moves a model to its device
    seed: int
    template_kwargs: Mapping[str, object] | None = None  # for their chat templates
    offload: Callable[[nn.Module], Offload] | None = None  # takes one off the device until it scores


RewardSpec: TypeAlias = NamedFunction | nn.Module | str  # a string is a reward model's folder or hub name


def reward_specs(
    settings: LocalRewardSettings,
    *,
    columns: Collection[str] | None,
    reward_models: Sequence[RewardEntry] = (),
    reward_funcs: Sequence[RewardEntry] = (),
) -> list[RewardSpec]:
    """All rewards but reward_url, in the order of reward_weights; functions are loaded and checked here.

    Objects of the user stand before what the settings name. Raises ConfigError if there is no reward at all, and for
    a built-in one that is not there or is written wrongly, RewardError for a file or name that is not there, and for a
    function that requires what `columns` do not give (None where they are not known yet).
    """
    specs = [_spec(one) for one in (*reward_funcs, *settings.reward_funcs)]
    in_settings = () if settings.reward_model_path is None else (settings.reward_model_path,)
    specs[:0] = [model if isinstance(model, str) else _spec(model) for model in reward_models or in_settings]
    if not specs and not (isinstance(settings, RewardSettings) and settings.reward_url is not None):
        raise ConfigError(
            "no reward: pass reward_model or reward_funcs, or set reward_model_path, reward_funcs or reward_url"
        )
    for spec in specs:
        if isinstance(spec, NamedFunction):
            function = FunctionReward(spec.function)
            if columns is not None:
                function.check(columns)
    return specs


def _spec(given: RewardEntry) -> RewardSpec:
    if isinstance(given, str):
        return given if meaning(given) == "model" else NamedFunction(load_function(given), given)
    return given if isinstance(given, nn.Module) else NamedFunction(given, None)


def load_reward_model(spec: RewardSpec, options: RewardModelOptions) -> PreTrainedModel | None:
    """The reward model of an entry, of one with adapters a merged copy; None for a function."""
    if isinstance(spec, str):
        return load_scalar_model(spec, role="reward_model", dtype=options.dtype, trust=options.trust)
    if not isinstance(spec, nn.Module):
        return None
    model = as_peft_model(spec)
    plain = transformers_model(model, "reward_model")
    return with_adapters_merged(model) if is_adapted(model) else plain


def make_sources(
    settings: LocalRewardSettings,
    loaded: Sequence[tuple[RewardSpec, PreTrainedModel | None]],
    tokenizer_of: Callable[[PreTrainedModel], PreTrainedTokenizerBase],
    policy: TokenizerIdentity,
    options: RewardModelOptions,
) -> list[RewardSource]:
    """Every entry with its model as a source of rewards, and reward_url behind them.

    `policy` is the tokenizer that writes the ids of rollouts. Raises RewardError if a function cannot be loaded in a
    worker process where the settings ask for one, ConfigError if a token is missing.
    """
    functions = iter(_functions(settings, [spec for spec, _ in loaded if isinstance(spec, NamedFunction)]))
    sources: list[RewardSource] = [
        next(functions) if model is None else model_source(model, tokenizer_of(model), policy, options)
        for _, model in loaded
    ]
    if isinstance(settings, RewardSettings) and settings.reward_url is not None:
        sources.append(_remote(settings, settings.reward_url, policy, options.seed))
    return sources


def load_sources(
    settings: LocalRewardSettings,
    specs: Sequence[RewardSpec],
    tokenizer: PreTrainedTokenizerBase | None,
    options: RewardModelOptions,
) -> list[RewardSource]:
    """Sources outside PPO: every reward model is loaded here, and reads with the tokenizer beside it.

    `tokenizer` is the policy's; None where every batch says whose ids it brings. Raises as `make_sources` does, and
    ModelError for a model that cannot be loaded.
    """
    loaded = [(spec, load_reward_model(spec, options)) for spec in specs]
    for note in (note for _, model in loaded if model is not None for note in bias_note(model, "reward_model")):
        print(f"nearstep: {note}", file=sys.stderr)
    return make_sources(
        settings,
        loaded,
        lambda model: reward_tokenizer(model, None, tokenizer, trust=options.trust),
        NO_POLICY if tokenizer is None else TokenizerIdentity.of(tokenizer),
        options,
    )


def on_error(settings: RewardSettings) -> OnError:
    """The settings for a failing reward."""
    return OnError(settings.on_reward_error, settings.reward_retries)


def model_source(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, policy: TokenizerIdentity, options: RewardModelOptions
) -> ModelReward:
    """A reward model, read by its own tokenizer, as a source of rewards."""
    limits = Limits.of(model.config)
    scorer = make_scorer(
        options.place(model),
        role="reward_model",
        pad_token_id=tokenizer.pad_token_id,
        max_tokens=options.max_tokens,
        autocast=options.autocast,
    )
    return ModelReward(
        Path(model.config.name_or_path or "reward_model").name,
        scorer if options.offload is None else IdleScorer(scorer, options.offload(model)),
        tokenizer=tokenizer,
        policy=policy,
        vocabulary_size=limits.rows,
        max_length=limits.positions,
        template_kwargs=options.template_kwargs,
    )


def reward_tokenizer(
    model: PreTrainedModel,
    given: PreTrainedTokenizerBase | None,
    policy: PreTrainedTokenizerBase | None,
    *,
    trust: Trust,
) -> PreTrainedTokenizerBase:
    """A reward model's tokenizer: as given, else from where the model came; one made in memory shares the policy's.

    Raises ModelError where that cannot be.
    """
    if given is not None:
        return given
    if model.config.name_or_path:
        name = model.config.name_or_path
        return load_tokenizer(name, role="reward_model", trust=trust)
    known = model.config.get_text_config().vocab_size
    if policy is None or known < len(policy):
        raise ModelError(
            f"reward_model: it was made in memory and knows {known} tokens, which is less than the policy's tokenizer "
            "has. Pass reward_processing_class, its own tokenizer."
        )
    return policy


def _functions(settings: LocalRewardSettings, specs: Sequence[NamedFunction]) -> list[RewardSource]:
    """Functions in this process, or in workers if the settings name a number of them or a time limit."""
    functions = [FunctionReward(spec.function) for spec in specs]
    if not functions or (settings.reward_workers is None and settings.reward_timeout_seconds is None):
        for spec in specs:
            if isinstance(spec.function, Prepares):
                spec.function.prepare()
        return list(functions)
    cores = os.cpu_count() or 1
    function_specs = [function_spec(e.function, function_name(e.function), e.spec) for e in specs]
    pool = WorkerPool(
        function_specs, settings.reward_workers or min(cores, MOST_WORKERS), settings.reward_timeout_seconds
    )
    pool.check()
    return [WorkerReward(function, number, pool) for number, function in enumerate(functions)]


def _remote(settings: RewardSettings, url: str, policy: TokenizerIdentity, seed: int) -> RewardSource:
    need_package("httpx2", "remote", "reward_url", ConfigError)
    from nearstep.rewards.remote.client import RemoteReward, Server

    server = Server(
        url,
        token=None if settings.reward_url_token_env is None else Secret(token_from(settings.reward_url_token_env)),
        timeout_seconds=settings.reward_url_timeout_seconds,
        retries=settings.reward_url_retries,
        batch_size=settings.reward_url_batch_size,
        seed=seed,
    )
    return RemoteReward(server, policy)
