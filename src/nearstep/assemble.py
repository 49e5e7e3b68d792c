"""How settings, models and data become a Recipe: where the parts of a run are chosen and put together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from nearstep.axes import ratio_cap, schedule, trust_region, vf_learning_rate
from nearstep.casting import Cast, Parts, RewardEntry, cast, policy_family, policy_tokenizer, reward_entries
from nearstep.config import PPOConfig
from nearstep.data.load import load_rows, table_of
from nearstep.data.preview import preview
from nearstep.data.prompts import PromptSet, encode_prompts
from nearstep.data.source import PromptSource
from nearstep.data.table import Table
from nearstep.errors import ConfigError
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Policy
from nearstep.models.stop_tokens import stop_ids
from nearstep.reports.callbacks import Callbacks, tracker_callbacks
from nearstep.reports.model_card import RunFacts, model_card
from nearstep.reports.reporter import Reporter, sample_updates
from nearstep.rewards.source import Rewards
from nearstep.rollout.transformers_engine import GenerationSettings, TransformersEngine
from nearstep.scale.backend import Backend
from nearstep.scale.torch_backend import torch_backend
from nearstep.training.batches import BatchSizes, batch_sizes
from nearstep.training.checkpoint import Checkpoint
from nearstep.training.clock import Clock
from nearstep.training.evaluation import SAMPLE_ROWS, Evaluator
from nearstep.training.optimizers import Learners, make_learner
from nearstep.training.recipe import Recipe
from nearstep.training.report import Report
from nearstep.training.state import State


@dataclass(frozen=True)
class _Ground:
    """What a run stands on before any weight is loaded: all of it checked."""

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    train: PromptSet
    held_out: PromptSet | None
    entries: list[RewardEntry]
    batch: BatchSizes


def assemble(config: PPOConfig, parts: Parts | None = None) -> Recipe:
    """Build everything a run needs, cheap checks first: settings, data and reward files before any weight.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    parts = parts or Parts()
    ground = _ground(config, parts)
    backend, batch, train = ground.backend, ground.batch, ground.train
    chosen = cast(config, parts, ground.entries, ground.tokenizer, backend)
    models = chosen.models
    learners = Learners(
        policy=make_learner(models.policy.model, config, config.learning_rate, batch.updates),
        critic=None
        if models.critic is None
        else make_learner(models.critic.model, config, vf_learning_rate(config), batch.updates),
    )
    callbacks = Callbacks(
        config, parts.callbacks, model=models.policy.model, processing_class=ground.tokenizer,
        total_updates=batch.updates, optimizer=learners.policy.optimizer, lr_scheduler=learners.policy.schedule,
        has_eval=ground.held_out is not None, rank=backend.rank, local_rank=backend.local_rank,
        world_size=backend.world_size,
    )  # fmt: skip
    rewards = Rewards(chosen.judges, ground.tokenizer, weights=config.reward_weights, state=lambda: callbacks.state)
    settings = _generation(config, ground.stops)
    evaluator = _evaluator(config, ground, models.policy, settings, rewards)
    prompts = PromptSource(train, config.seed, batch.batch, config.num_generations, backend.rank, backend.world_size)
    clock = Clock(backend.device)
    reporter = Reporter(config, callbacks, total_updates=batch.updates, main=backend.rank == 0)
    return Recipe(
        config=config,
        batch=batch,
        tokenizer=ground.tokenizer,
        models=models,
        prompts=prompts,
        engine=TransformersEngine(settings),
        sampling=settings.sampling,
        rewards=rewards,
        trust_region=trust_region(config),
        ratio_cap=ratio_cap(config),
        schedule=schedule(config, batch.updates),
        learners=learners,
        backend=backend,
        clock=clock,
        report=Report(
            reporter, backend, batch, learners, clock, evaluator,
            sample_updates(batch.updates, config.num_sample_generations), config.log_rollouts,
        ),
        checkpoint=Checkpoint(
            Path(config.output_dir), models, ground.tokenizer, backend, config.save_total_limit,
            _card(config, chosen, rewards, train, reporter), reporter.saved,
        ),
        evaluate=evaluator.evaluate,
        introduction="\n".join([preview(train), *prompts.notes(), *chosen.notes]),
    )  # fmt: skip


def _ground(config: PPOConfig, parts: Parts) -> _Ground:
    """Everything that can be checked without weights."""
    backend = torch_backend(use_cpu=config.use_cpu)
    tracker_callbacks(config.report_to, main=backend.rank == 0)
    tokenizer, family = policy_tokenizer(config, parts), policy_family(config, parts)
    stops = stop_ids(
        tokenizer, stop_token=config.stop_token, stop_token_id=config.stop_token_id, vocab_size=family.vocab_size
    )
    train, held_out = _prompt_sets(config, parts, tokenizer, family)
    entries = reward_entries(config, parts, columns=train.columns)
    batch = batch_sizes(config, len(train), backend.world_size)
    return _Ground(backend, tokenizer, stops, train, held_out, entries, batch)


def _evaluator(
    config: PPOConfig, ground: _Ground, policy: Policy, settings: GenerationSettings, rewards: Rewards
) -> Evaluator:
    """Greedy play over the evaluation prompts; samples come from them, or from the training prompts."""
    held_out, backend = ground.held_out, ground.backend
    chunk = config.local_rollout_forward_batch_size * backend.world_size
    shown = held_out or ground.train
    rows = range(min(SAMPLE_ROWS, len(shown)))
    return Evaluator(
        policy=policy,
        engine=TransformersEngine(replace(settings, greedy=True)),
        rewards=rewards,
        backend=backend,
        tokenizer=ground.tokenizer,
        chunks=[]
        if held_out is None
        else list(held_out.in_order(chunk, rank=backend.rank, world_size=backend.world_size)),
        sample_prompts=shown.take(rows, rows),
    )


def _card(
    config: PPOConfig, chosen: Cast, rewards: Rewards, train: PromptSet, reporter: Reporter
) -> Callable[[State, Literal["policy", "value"]], str]:
    """The text of a model card at a given moment of the run."""
    names = chosen.names
    facts = RunFacts(
        config, updates=0, episodes=0, policy=names.policy, reference=names.reference, critic=names.critic,
        rewards=rewards.names, dataset=train.table.label,
    )  # fmt: skip
    return lambda state, role: model_card(
        replace(facts, updates=state.update, episodes=state.episodes, metrics=reporter.latest), role
    )


def _prompt_sets(
    config: PPOConfig, parts: Parts, tokenizer: PreTrainedTokenizerBase, family: PreTrainedConfig
) -> tuple[PromptSet, PromptSet | None]:
    """Training prompts and, if there are any, evaluation prompts, each checked row by row."""
    if parts.train_dataset is None and config.dataset_name is None:
        raise ConfigError("no prompts: pass train_dataset, or set dataset_name")
    train = _table(parts.train_dataset, "train_dataset", config.dataset_name, config.dataset_train_split, config)
    held_out = None
    if parts.eval_dataset is not None or config.eval_dataset_name is not None:
        split = config.dataset_test_split or "train"
        held_out = _table(parts.eval_dataset, "eval_dataset", config.eval_dataset_name, split, config)
    elif config.dataset_test_split is not None:
        held_out = _table(None, "eval_dataset", config.dataset_name, config.dataset_test_split, config)
    encoded = [
        None if table is None else encode_prompts(
            table, tokenizer, vocab_size=family.vocab_size,
            max_prompt_length=_longest_prompt(config, family), on_long_prompt=config.on_long_prompt,
        )
        for table in (train, held_out)
    ]  # fmt: skip
    assert encoded[0] is not None
    return encoded[0], encoded[1]


def _table(given: object, role: str, name: str | None, split: str, config: PPOConfig) -> Table:
    """Rows of an object that the user passed, else of a file, folder or hub name."""
    if given is not None and not isinstance(given, str):
        return table_of(given, role, split)
    place = given if isinstance(given, str) else name
    assert place is not None
    return load_rows(place, split=split, config=config.dataset_config if place == config.dataset_name else None)


def _longest_prompt(config: PPOConfig, family: PreTrainedConfig) -> int | None:
    """max_prompt_length, or what the policy's positions leave beside a response."""
    positions: int | None = family.to_dict().get("max_position_embeddings")
    if positions is None:
        return config.max_prompt_length
    room = positions - config.response_length
    if room < 1 or (config.max_prompt_length or 0) > room:
        raise ConfigError(
            f"the policy has {positions} positions: max_prompt_length = {config.max_prompt_length} and "
            "response_length = "
            f"{config.response_length} together are more. Lower one of them."
        )
    return config.max_prompt_length or room


def _generation(config: PPOConfig, stops: tuple[int, ...]) -> GenerationSettings:
    return GenerationSettings(
        sampling=Sampling(config.temperature, config.top_p, config.top_k),
        response_length=config.response_length,
        stop_ids=stops,
        seed=config.seed,
        max_rows=config.local_rollout_forward_batch_size,
        max_tokens=config.max_tokens_per_microbatch,
    )
