"""How settings, models and data become a Recipe: where the parts of a run are chosen and put together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedTokenizerBase

from nearstep.assembly.axes import choose_axes, critic_learning_rate
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.models import BuiltModels, build_models, own_modules, policy_of
from nearstep.checkpoint.export import Checkpoint
from nearstep.config.ppo import PPOConfig
from nearstep.data.run_prompts import RunPrompts, make_run_prompts
from nearstep.data.templates import with_template
from nearstep.evaluation.evaluator import SAMPLE_ROWS, Evaluator
from nearstep.models.distribution import Sampling
from nearstep.models.load import choose_tokenizer, family_of
from nearstep.models.roles import Policy
from nearstep.models.stop_tokens import stop_ids
from nearstep.reports.callbacks import Callbacks, tracker_callbacks
from nearstep.reports.model_card import RunFacts, model_card
from nearstep.reports.reporter import Reporter, sample_updates
from nearstep.reports.run_report import Report
from nearstep.rewards.build import RewardSpec, on_error, reward_specs
from nearstep.rewards.combine import Rewards
from nearstep.rollout.build import make_engine
from nearstep.rollout.decode_graphs import require_gpu
from nearstep.rollout.engine import EngineSettings, GenerationSettings, RolloutEngine, require_top_tokens
from nearstep.scale.backend import Backend
from nearstep.scale.torch_backend import torch_backend
from nearstep.training.batches import BatchSizes, batch_sizes
from nearstep.training.clock import Clock
from nearstep.training.optimizers import Learners, make_learners
from nearstep.training.recipe import Recipe
from nearstep.training.state import State


@dataclass(frozen=True)
class CheckedInputs:
    """What a run stands on before any weight is loaded: all of it checked."""

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    stops: tuple[int, ...]
    run_prompts: RunPrompts
    specs: list[RewardSpec]
    batch: BatchSizes


def assemble(config: PPOConfig, inputs: RunInputs | None = None) -> Recipe:
    """Build everything a run needs, cheap checks first: settings, data and reward files before any weight.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    inputs = inputs or RunInputs()
    checked = _check_inputs(config, inputs)
    backend, batch, run_prompts = checked.backend, checked.batch, checked.run_prompts
    axes = choose_axes(config, inputs, batch.updates)
    engine = _engine(config, inputs, axes.trust_region.top_k)
    chosen = build_models(
        config,
        inputs,
        checked.specs,
        checked.tokenizer,
        backend,
        needs_critic=axes.advantage.needs_critic,
        kl_penalty=axes.kl_penalty,
    )
    models = chosen.models
    learners = make_learners(models, config, critic_learning_rate(config), batch.updates)
    callbacks = _callbacks(config, inputs, checked, learners, models.policy)
    rewards = Rewards(
        chosen.sources,
        checked.tokenizer,
        weights=config.reward_weights,
        on_error=on_error(config),
        state=lambda: callbacks.state,
    )
    settings = _generation(config, checked.stops)
    evaluator = _evaluator(config, checked, models.policy, settings, rewards)
    prompts = run_prompts.source(config, batch.batch, rank=backend.rank, world_size=backend.world_size)
    clock = Clock(backend.device)
    reporter = Reporter(config, callbacks, total_updates=batch.updates, main=backend.rank == 0)
    return Recipe(
        config=config,
        batch=batch,
        tokenizer=checked.tokenizer,
        models=models,
        prompts=prompts,
        engine=engine,
        generation=settings,
        rewards=rewards,
        trust_region=axes.trust_region,
        ratio_limit=axes.ratio_limit,
        advantage=axes.advantage,
        whiten_advantages=axes.whiten_advantages,
        kl_controller=axes.kl_controller,
        loss_aggregation=axes.loss_aggregation,
        schedule=axes.critic_schedule,
        learners=learners,
        backend=backend,
        clock=clock,
        report=_report(config, checked, reporter, clock, evaluator),
        checkpoint=_checkpoint(config, checked, chosen, rewards, reporter),
        evaluator=evaluator,
        introduction="\n".join(
            [run_prompts.introduction(), *prompts.notes(), *chosen.notes, *axes.notes, *learners.notes()]
        ),
    )


def _callbacks(
    config: PPOConfig, inputs: RunInputs, checked: CheckedInputs, learners: Learners, policy: Policy
) -> Callbacks:
    """transformers' callbacks and trackers, with what they are given of the run."""
    backend = checked.backend
    return Callbacks(
        config,
        inputs.callbacks,
        model=policy.model,
        processing_class=checked.tokenizer,
        total_updates=checked.batch.updates,
        optimizer=learners.policy.optimizer,
        lr_scheduler=learners.policy.schedule,
        has_eval=checked.run_prompts.held_out is not None,
        rank=backend.rank,
        local_rank=backend.local_rank,
        world_size=backend.world_size,
    )


def _report(
    config: PPOConfig, checked: CheckedInputs, reporter: Reporter, clock: Clock, evaluator: Evaluator
) -> Report:
    """What gathers the numbers of an update over processes and hands them to the reporter."""
    return Report(
        reporter,
        checked.backend,
        checked.batch,
        clock,
        evaluator.decode,
        sample_updates(checked.batch.updates, config.num_sample_generations),
        evaluator.has_prompts,
        config.log_rollouts,
    )


def _checkpoint(
    config: PPOConfig, checked: CheckedInputs, chosen: BuiltModels, rewards: Rewards, reporter: Reporter
) -> Checkpoint:
    """What saves the models as folders, each with a card."""
    return Checkpoint(
        Path(config.output_dir),
        chosen.models,
        checked.tokenizer,
        checked.backend,
        config.save_total_limit,
        _card(config, chosen, rewards, checked.run_prompts, reporter),
        reporter.saved,
    )


def _check_inputs(config: PPOConfig, inputs: RunInputs) -> CheckedInputs:
    """Everything that can be checked without weights."""
    backend = torch_backend(use_cpu=config.use_cpu)
    if config.decode_graphs:
        require_gpu(backend.device)
    tracker_callbacks(config.report_to, main=backend.rank == 0)
    policy, trusted = policy_of(config, inputs), config.trust_remote_code
    own = choose_tokenizer(
        inputs.tokenizer, policy, model_name_or_path=config.model_name_or_path, trust_remote_code=trusted
    )
    tokenizer, family = with_template(own, config.prompt_type), family_of(policy, trust_remote_code=trusted)
    stops = stop_ids(
        tokenizer, stop_token=config.stop_token, stop_token_id=config.stop_token_id, vocab_size=family.vocab_size
    )
    run_prompts = make_run_prompts(
        config,
        train_dataset=inputs.train_dataset,
        eval_dataset=inputs.eval_dataset,
        tokenizer=tokenizer,
        family=family,
        main=backend.rank == 0,
    )
    specs = reward_specs(
        config,
        columns=run_prompts.prompts.columns,
        reward_model=inputs.reward_model,
        reward_funcs=inputs.reward_funcs,
    )
    batch = batch_sizes(config, run_prompts.rows, backend.world_size)
    return CheckedInputs(backend, tokenizer, stops, run_prompts, specs, batch)


def _evaluator(
    config: PPOConfig, checked: CheckedInputs, policy: Policy, settings: GenerationSettings, rewards: Rewards
) -> Evaluator:
    """Greedy generation from the evaluation prompts; samples come from them, or from the training prompts."""
    held_out, backend = checked.run_prompts.held_out, checked.backend
    chunk = config.local_rollout_forward_batch_size * backend.world_size
    shown = held_out or checked.run_prompts.prompts
    rows = range(min(SAMPLE_ROWS, len(shown)))
    return Evaluator(
        policy=policy,
        generation=replace(settings, greedy=True),
        rewards=rewards,
        backend=backend,
        tokenizer=checked.tokenizer,
        chunks=[]
        if held_out is None
        else list(held_out.in_order(chunk, rank=backend.rank, world_size=backend.world_size)),
        sample_prompts=shown.take(rows, rows),
    )


def _card(
    config: PPOConfig, chosen: BuiltModels, rewards: Rewards, run_prompts: RunPrompts, reporter: Reporter
) -> Callable[[State, Literal["policy", "value"]], str]:
    """The text of a model card at a given moment of the run."""
    names = chosen.names
    facts = RunFacts(
        config,
        updates=0,
        episodes=0,
        policy=names.policy,
        reference=names.reference,
        critic=names.critic,
        has_reference=chosen.models.reference is not None,
        rewards=rewards.names,
        dataset=", ".join(run_prompts.names),
        own_modules=own_modules(chosen.models),
    )
    return lambda state, role: model_card(
        replace(facts, updates=state.update, episodes=state.episodes, metrics=reporter.latest), role
    )


def _generation(config: PPOConfig, stops: tuple[int, ...]) -> GenerationSettings:
    return GenerationSettings(
        sampling=Sampling(config.temperature, config.top_p, config.top_k),
        response_length=config.response_length,
        stop_ids=stops,
        seed=config.seed,
    )


def _engine(config: PPOConfig, inputs: RunInputs, top_k: int) -> RolloutEngine:
    """The user's engine or the one that the settings name. Raises ConfigError if it records no top tokens."""
    engine = make_engine(config.engine if inputs.engine is None else inputs.engine, _engine_settings(config))
    require_top_tokens(engine, top_k)
    return engine


def _engine_settings(config: PPOConfig) -> EngineSettings:
    return EngineSettings(
        max_rows=config.local_rollout_forward_batch_size,
        max_tokens=config.max_tokens_per_microbatch,
        decode_graphs=config.decode_graphs,
    )
