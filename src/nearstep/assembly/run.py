"""How settings, models and data become a Recipe: where the parts of a run are chosen and put together."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from nearstep.assembly.ahead import ahead_of, check_ahead
from nearstep.assembly.auxiliary import auxiliary_of, require_part, with_texts
from nearstep.assembly.axes import Axes, choose_axes, critic_learning_rate
from nearstep.assembly.checked_inputs import CheckedInputs, check_inputs
from nearstep.assembly.critic_columns import critic_text_of
from nearstep.assembly.engine import engine_of, with_named_engine
from nearstep.assembly.evaluation import RunMemory, make_evaluator, stop_rules
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.models import BuiltModels, build_models
from nearstep.assembly.rows import own_modules
from nearstep.assembly.saving import model_folders, saves_in_pieces
from nearstep.assembly.selection import choose_selection, for_engine
from nearstep.checkpoint.saver import Checkpoints
from nearstep.common.telling import quiet_libraries, tell
from nearstep.config.launched import as_launched
from nearstep.config.ppo import PPOConfig
from nearstep.data.run_prompts import RunPrompts
from nearstep.evaluation.evaluator import Evaluator
from nearstep.models.classifier import is_made_here
from nearstep.models.distribution import Sampling
from nearstep.models.roles import Models, Policy, inner_model
from nearstep.models.stored_head import head_in_words, shown
from nearstep.reports.best import best_metric
from nearstep.reports.callbacks import Callbacks
from nearstep.reports.details import Details
from nearstep.reports.dropped import DroppedRecords
from nearstep.reports.model_card import RunFacts, model_card
from nearstep.reports.reporter import Reporter
from nearstep.reports.run_folder import DROPPED
from nearstep.reports.run_info import RunStart, device_name
from nearstep.reports.run_report import Report, sample_updates
from nearstep.reports.settings_file import GivenInPython, settings_text
from nearstep.rewards.build import on_error
from nearstep.rewards.combine import Rewards
from nearstep.rollout.engine import GenerationSettings
from nearstep.training.clock import Clock
from nearstep.training.interruption import Interruption
from nearstep.training.objectives import PolicyTerms
from nearstep.training.optimizers import Learners, make_learners
from nearstep.training.recipe import Recipe
from nearstep.training.replay import through_files
from nearstep.training.row_trace import RowTracer
from nearstep.training.shared_ahead import SampledAhead
from nearstep.training.state import State
from nearstep.training.warm_ups import check_warm_ups


def assemble(config: PPOConfig, inputs: RunInputs | None = None) -> Recipe:
    """Build everything a run needs, cheap checks first: settings, data and reward files before any weight.

    Raises ConfigError, DataError, RewardError or ModelError; nothing has been written then.
    """
    config = as_launched(os.environ, config)
    with quiet_libraries():
        return _assemble(*with_named_engine(config, (inputs or RunInputs()).checked(config)))


def _assemble(config: PPOConfig, inputs: RunInputs) -> Recipe:
    tell("reading the prompts …")
    checked = check_inputs(config, inputs)
    axes = choose_axes(config, inputs, checked.batch.updates, rewards=len(checked.specs))
    checked = checked.with_steps_of(axes.critic_schedule)
    selection, prompts, selection_notes = choose_selection(config, inputs, checked, axes.advantage)
    backend, batch, run_prompts = checked.backend, checked.batch, checked.run_prompts
    notes = [*axes.notes, *check_warm_ups(config, batch)]
    check_ahead(config, inputs, checked, selection)
    origin = checked.rollout_origin(config, axes.trust_region.top_k)
    engine = engine_of(config, inputs, axes.trust_region.top_k, checked)
    auxiliary = auxiliary_of(config, inputs, checked)
    checked = with_texts(checked, auxiliary)
    tell("loading the models …")
    chosen = build_models(config, inputs, checked.specs, checked.tokenizer, checked.vocabulary, backend, axes)
    models, settings = chosen.models, _generation(config, checked)
    learners = make_learners(models, config, critic_learning_rate(config), batch.updates, backend)
    callbacks = _callbacks(config, inputs, checked, learners, models.policy)
    rewards = _rewards(config, chosen, checked, callbacks)
    evaluator = make_evaluator(config, checked, models, settings, rewards, lambda: callbacks.state)
    critic_text, told = critic_text_of(config, checked.tokenizer, models.critic, run_prompts)
    notes = [*selection_notes, *checked.stops.notes, *chosen.notes, *learners.notes(), *auxiliary.notes, *notes, *told]
    given = inputs.in_words(config)
    reporter = _reporter(config, checked, callbacks, given)
    clock, interruption = Clock(backend.device, begins=reporter.phase), Interruption()
    report = _report(config, checked, reporter, clock, evaluator, interruption, _tracer(config, axes, models, settings))
    sampling = replace(settings, top_tokens=axes.trust_region.top_k)
    ahead = ahead_of(config, inputs, checked, models.policy, engine, sampling, prompts, clock, notes)
    engine, training_rewards = through_files(config, engine, rewards, backend, checked.tokenizer, origin)
    memory = RunMemory(report, evaluator, engine)
    return Recipe(
        config=config,
        batch=batch,
        tokenizer=checked.tokenizer,
        models=models,
        prompts=prompts if ahead is None else ahead,
        selection=for_engine(selection, engine),
        engine=engine,
        generation=settings,
        rewards=training_rewards,
        trust_region=axes.trust_region,
        ratio_limit=axes.ratio_limit,
        correction=axes.correction,
        advantage=axes.advantage,
        whiten_advantages=axes.whiten_advantages,
        kl_controller=axes.kl_controller,
        loss_aggregation=axes.loss_aggregation,
        schedule=axes.critic_schedule,
        learners=learners,
        backend=backend,
        clock=clock,
        report=report,
        checkpoint=_checkpoints(config, checked, chosen, learners, rewards, memory, callbacks, given.settings, ahead),
        interruption=interruption,
        evaluator=evaluator,
        introduction="\n".join([run_prompts.introduction(), *notes]),
        critic_text=critic_text,
        auxiliary=auxiliary,
        ahead=ahead,
    )


def _reporter(config: PPOConfig, checked: CheckedInputs, callbacks: Callbacks, given: GivenInPython) -> Reporter:
    """What shows and records the numbers of a run, with how it was started."""
    backend, batch = checked.backend, checked.batch
    devices = backend.everywhere(device_name(backend.device))
    text = settings_text(config, "ppo", given, processes=len(devices))
    start = RunStart(config, given.settings, devices)
    return Reporter(config, callbacks, total_updates=batch.updates, main=backend.is_main, settings=text, start=start)


def _rewards(config: PPOConfig, chosen: BuiltModels, checked: CheckedInputs, callbacks: Callbacks) -> Rewards:
    """The reward sources as one. Raises ConfigError where a setting names a part that there is not."""
    rewards = Rewards(
        chosen.sources,
        checked.tokenizer,
        weights=config.reward_weights,
        on_error=on_error(config),
        state=lambda: callbacks.state,
        sharing=checked.backend,
    )
    require_part(config, rewards.names)
    return rewards


def _checkpoints(
    config: PPOConfig,
    checked: CheckedInputs,
    chosen: BuiltModels,
    learners: Learners,
    rewards: Rewards,
    memory: RunMemory,
    callbacks: Callbacks,
    named: Mapping[str, object],
    ahead: SampledAhead | None,
) -> Checkpoints:
    """What saves the run, its models as folders with a card each, and restores it."""
    card = _card(config, chosen, rewards, checked.run_prompts, memory.report.reporter)
    folders = model_folders(config, chosen.models, checked.tokenizer, checked.backend, card)
    return Checkpoints(
        config=config,
        folders=folders,
        learners=learners,
        updates=checked.batch.updates,
        batch=checked.batch.batch,
        rows=checked.batch.dataset_rows,
        data=checked.data,
        named=named,
        backend=checked.backend,
        remember=memory.remember,
        recall=memory.recall,
        announce=memory.report.reporter.saved,
        announce_whole=callbacks.read_saved,
        resumed=checked.resumed,
        pieces=saves_in_pieces(config, folders, learners),
        ahead=ahead,
    )


def _callbacks(
    config: PPOConfig, inputs: RunInputs, checked: CheckedInputs, learners: Learners, policy: Policy
) -> Callbacks:
    """transformers' callbacks and trackers, with what they are given of the run."""
    backend, held_out = checked.backend, checked.run_prompts.held_out
    sets = tuple(name for name in held_out if name)
    return Callbacks(
        config,
        inputs.callbacks,
        model=policy.model,
        processing_class=checked.tokenizer,
        total_updates=checked.batch.updates,
        optimizer=learners.policy.optimizer,
        lr_scheduler=learners.policy.schedule,
        has_eval=bool(held_out),
        best=best_metric(config, has_eval=bool(held_out), sets=sets),
        rank=0 if backend.is_main else max(1, backend.rank),  # world process zero is one alone
        local_rank=backend.local_rank,
        world_size=backend.world_size,
    )


def _tracer(config: PPOConfig, axes: Axes, models: Models, settings: GenerationSettings) -> RowTracer:
    terms = PolicyTerms.chosen(config, axes.trust_region, axes.ratio_limit, axes.loss_aggregation, axes.correction)
    return RowTracer(models.policy, settings.sampling, terms, config.kl_estimator, models.critic is not None)


def _report(
    config: PPOConfig,
    checked: CheckedInputs,
    reporter: Reporter,
    clock: Clock,
    evaluator: Evaluator,
    interruption: Interruption,
    tracer: RowTracer,
) -> Report:
    """What gathers the numbers of an update over processes and hands them to the reporter."""
    return Report(
        reporter,
        checked.backend,
        checked.batch,
        clock,
        evaluator.decode,
        evaluator.judged,
        sample_updates(checked.batch.updates, config.num_sample_generations),
        evaluator.has_prompts,
        config.log_rollouts,
        Details(config, checked.batch.updates, tracer, checked.backend, evaluator.decode),
        interruption,
        stop_rules(config, checked.run_prompts),
        DroppedRecords(Path(config.output_dir) / DROPPED, config.rollouts_max_mib, reporter.note),
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
        stored=names.stored,
        reference=names.reference,
        critic=names.critic,
        critic_made_here=chosen.critic_model is not None and is_made_here(inner_model(chosen.critic_model)),
        value_head=_head_in_words(chosen.models),
        has_reference=chosen.models.reference is not None,
        rewards=rewards.names,
        dataset=", ".join(run_prompts.names),
        own_modules=own_modules(chosen.models),
    )
    return lambda state, role: model_card(
        replace(facts, updates=state.update, episodes=state.episodes, metrics=reporter.latest), role
    )


def _head_in_words(models: Models) -> str | None:
    stored = None if models.critic is None else head_in_words(models.critic.members[0].value_head)
    return None if stored is None else shown(stored)


def _generation(config: PPOConfig, checked: CheckedInputs) -> GenerationSettings:
    return GenerationSettings(
        sampling=Sampling(config.temperature, config.top_p, config.top_k),
        response_length=config.response_length,
        stop_ids=checked.stops.ids,
        seed=config.seed,
        greedy=not config.do_sample,
        max_length=config.max_length,
        vocabulary=checked.vocabulary,
    )
