"""How settings, models and data become a Recipe: where the parts of a run are chosen and put together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from nearstep.axes import ratio_cap, schedule, trust_region, vf_learning_rate
from nearstep.casting import Cast, Parts, cast, policy_of
from nearstep.config import PPOConfig
from nearstep.data.templates import with_template
from nearstep.judging import JudgeEntry, judge_entries, on_error
from nearstep.models.distribution import Sampling
from nearstep.models.load import choose_tokenizer, family_of
from nearstep.models.roles import Policy
from nearstep.models.stop_tokens import stop_ids
from nearstep.reports.callbacks import Callbacks, tracker_callbacks
from nearstep.reports.model_card import RunFacts, model_card
from nearstep.reports.reporter import Reporter, sample_updates
from nearstep.rewards.source import Rewards
from nearstep.rollout.decode_graphs import require_gpu
from nearstep.rollout.transformers_engine import GenerationSettings, TransformersEngine
from nearstep.scale.backend import Backend
from nearstep.scale.torch_backend import torch_backend
from nearstep.supply import Supply, make_supply
from nearstep.training.batches import BatchSizes, batch_sizes
from nearstep.training.checkpoint import Checkpoint
from nearstep.training.clock import Clock
from nearstep.training.evaluation import SAMPLE_ROWS, Evaluator
from nearstep.training.optimizers import make_learners
from nearstep.training.recipe import Recipe
from nearstep.training.report import Report
from nearstep.training.state import State


@dataclass(frozen=True)
class _Ground:
    """What a run stands on before any weight is loaded: all of it checked."""

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    supply: Supply
    entries: list[JudgeEntry]
    batch: BatchSizes


def assemble(config: PPOConfig, parts: Parts | None = None) -> Recipe:
    """Build everything a run needs, cheap checks first: settings, data and reward files before any weight.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    parts = parts or Parts()
    ground = _ground(config, parts)
    backend, batch, supply = ground.backend, ground.batch, ground.supply
    chosen = cast(config, parts, ground.entries, ground.tokenizer, backend)
    models = chosen.models
    learners = make_learners(models, config, vf_learning_rate(config), batch.updates)
    callbacks = Callbacks(
        config, parts.callbacks, model=models.policy.model, processing_class=ground.tokenizer,
        total_updates=batch.updates, optimizer=learners.policy.optimizer, lr_scheduler=learners.policy.schedule,
        has_eval=supply.held_out is not None, rank=backend.rank, local_rank=backend.local_rank,
        world_size=backend.world_size,
    )  # fmt: skip
    rewards = Rewards(
        chosen.judges,
        ground.tokenizer,
        weights=config.reward_weights,
        on_error=on_error(config),
        state=lambda: callbacks.state,
    )
    settings = _generation(config, ground.stops)
    evaluator = _evaluator(config, ground, models.policy, settings, rewards)
    prompts = supply.source(config, batch.batch, rank=backend.rank, world_size=backend.world_size)
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
            _card(config, chosen, rewards, supply, reporter), reporter.saved,
        ),
        evaluate=evaluator.evaluate,
        introduction="\n".join([supply.introduction(), *prompts.notes(), *chosen.notes]),
    )  # fmt: skip


def _ground(config: PPOConfig, parts: Parts) -> _Ground:
    """Everything that can be checked without weights."""
    backend = torch_backend(use_cpu=config.use_cpu)
    if config.decode_graphs:
        require_gpu(backend.device)
    tracker_callbacks(config.report_to, main=backend.rank == 0)
    policy, trusted = policy_of(config, parts), config.trust_remote_code
    own = choose_tokenizer(
        parts.tokenizer, policy, model_name_or_path=config.model_name_or_path, trust_remote_code=trusted
    )
    tokenizer, family = with_template(own, config.prompt_type), family_of(policy, trust_remote_code=trusted)
    stops = stop_ids(
        tokenizer, stop_token=config.stop_token, stop_token_id=config.stop_token_id, vocab_size=family.vocab_size
    )
    supply = make_supply(
        config, train_dataset=parts.train_dataset, eval_dataset=parts.eval_dataset, tokenizer=tokenizer, family=family,
        main=backend.rank == 0,
    )  # fmt: skip
    entries = judge_entries(
        config,
        columns=supply.prompts.columns,
        reward_model=parts.reward_model,
        reward_funcs=parts.reward_funcs,
    )
    batch = batch_sizes(config, supply.rows, backend.world_size)
    return _Ground(backend, tokenizer, stops, supply, entries, batch)


def _evaluator(
    config: PPOConfig, ground: _Ground, policy: Policy, settings: GenerationSettings, rewards: Rewards
) -> Evaluator:
    """Greedy play over the evaluation prompts; samples come from them, or from the training prompts."""
    held_out, backend = ground.supply.held_out, ground.backend
    chunk = config.local_rollout_forward_batch_size * backend.world_size
    shown = held_out or ground.supply.prompts
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
    config: PPOConfig, chosen: Cast, rewards: Rewards, supply: Supply, reporter: Reporter
) -> Callable[[State, Literal["policy", "value"]], str]:
    """The text of a model card at a given moment of the run."""
    names = chosen.names
    facts = RunFacts(
        config, updates=0, episodes=0, policy=names.policy, reference=names.reference, critic=names.critic,
        has_reference=chosen.models.reference is not None, rewards=rewards.names, dataset=", ".join(supply.names),
    )  # fmt: skip
    return lambda state, role: model_card(
        replace(facts, updates=state.update, episodes=state.episodes, metrics=reporter.latest), role
    )


def _generation(config: PPOConfig, stops: tuple[int, ...]) -> GenerationSettings:
    return GenerationSettings(
        sampling=Sampling(config.temperature, config.top_p, config.top_k),
        response_length=config.response_length,
        stop_ids=stops,
        seed=config.seed,
        max_rows=config.local_rollout_forward_batch_size,
        max_tokens=config.max_tokens_per_microbatch,
        decode_graphs=config.decode_graphs,
    )
