"""What of a run is checked before any weight is loaded: settings, tokenizer, data, rewards, sizes, a checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from nearstep.assembly.critic_columns import check_critic_columns
from nearstep.assembly.evaluation_data import judge_specs
from nearstep.assembly.fitting_roles import check_reward_models, fitting_limits
from nearstep.assembly.inputs import RunInputs
from nearstep.assembly.models import policy_of
from nearstep.assembly.one_base import check_roles_on_base
from nearstep.assembly.policy_folder import base_under_adapters
from nearstep.checkpoint.resume import Resumed, checkpoint_to_fork, choose_checkpoint, settings_to_keep
from nearstep.common.hub import check_hub
from nearstep.common.telling import tell
from nearstep.common.waiting import WATCHDOG
from nearstep.config.ppo import PPOConfig
from nearstep.data.run_prompts import RunPrompts, make_run_prompts
from nearstep.data.templates import with_template
from nearstep.models.adapters import POLICY_TASKS, check_peft_config, lora_from
from nearstep.models.load import family_of
from nearstep.models.stop_tokens import ModelEnds, StopTokens, stop_tokens
from nearstep.models.tokenizers import choose_tokenizer
from nearstep.reports.callbacks import tracker_callbacks
from nearstep.reports.run_folder import checkpoints, update_of
from nearstep.rewards.build import RewardSpec, reward_specs
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rollout.decode_graphs import require_gpu
from nearstep.scale.backend import Backend
from nearstep.scale.choice import make_backend
from nearstep.training.batches import BatchSizes, batch_sizes
from nearstep.training.rollout_origin import RolloutOrigin, check_dump, check_replay
from nearstep.training.schedules import CriticSchedule, planned_steps
from nearstep.training.stored_rollouts import check_pretraining


@dataclass(frozen=True)
class CheckedInputs:
    """What a run stands on before any weight is loaded: all of it checked."""

    backend: Backend
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int  # ids that are sampled lie below it
    stops: StopTokens
    run_prompts: RunPrompts
    specs: list[RewardSpec]
    judges: list[RewardSpec]  # of evaluations alone
    batch: BatchSizes
    resumed: Resumed | None
    data: str  # hash of the prompts
    positions: int | None = None  # tokens that a row may have, of the model that takes fewest; None for no limit

    def rollout_origin(self, config: PPOConfig, top_tokens: int) -> RolloutOrigin:
        """What this run's rollouts are sampled with. Raises ConfigError or DataError where replay_rollouts,
        dump_rollouts or vf_pretrain_rollouts name a folder that does not fit."""
        batch, world_size, pretraining = self.batch, self.backend.world_size, config.vf_pretrain_rollouts
        is_named = any((config.replay_rollouts, config.dump_rollouts, pretraining))
        origin = RolloutOrigin.of(
            config,
            processes=world_size,
            batch=batch.batch,
            data=self.data,
            top_tokens=top_tokens,
            tokenizer=TokenizerIdentity.of(self.tokenizer).tokens if is_named else None,
        )
        if pretraining is not None and self.resumed is None:  # a run that goes on has done with it
            check_pretraining(Path(pretraining), origin, positions=self.positions, minibatches=batch.minibatches)
        if config.replay_rollouts is not None:
            after = 0 if self.resumed is None else self.resumed.manifest.update
            folder = Path(config.replay_rollouts)
            check_replay(folder, origin, rank=self.backend.rank, after=after, updates=batch.updates)
        if config.dump_rollouts is not None:
            check_dump(Path(config.dump_rollouts), origin, goes_on=config.resume is not None)
            self.backend.wait_for_all()  # or a fast process writes before a slow one has looked
        return origin

    def with_steps_of(self, schedule: CriticSchedule) -> "CheckedInputs":
        """The same, with the optimizer steps counted that the schedule will have taken."""
        planned = planned_steps(schedule, self.batch.updates, self.batch.minibatches)
        return replace(self, batch=replace(self.batch, planned=planned))


def check_inputs(config: PPOConfig, inputs: RunInputs) -> CheckedInputs:
    """Everything that can be checked without weights."""
    WATCHDOG.begin_run(config.wait_timeout_seconds)
    backend = make_backend(config)
    if config.decode_graphs:
        require_gpu(backend.device)
    tracker_callbacks(config.report_to, main=backend.is_main)
    if inputs.peft_config is not None:
        check_peft_config(inputs.peft_config, POLICY_TASKS)
    elif config.use_peft:
        lora_from(config)
    check_roles_on_base(config, inputs)
    resumed = None
    if config.resume is not None:
        kept = settings_to_keep(config, inputs.in_words(config).settings)
        resumed = choose_checkpoint(Path(config.output_dir), config.resume, kept)
    if resumed is None and config.fork_from is not None:
        resumed = checkpoint_to_fork(config.fork_from)
    elif resumed is None and config.resume is None and (found := checkpoints(Path(config.output_dir))):
        tell(
            f"output_dir = {config.output_dir} holds a run up to update {update_of(found[-1])}: train() refuses it, "
            "unless it is told to go on (resume_from_checkpoint=True, or resume = auto)"
        )
    policy, trusted = policy_of(config, inputs), config.trust
    own = choose_tokenizer(inputs.tokenizer, policy, model_name_or_path=config.model_name_or_path, trust=trusted)
    tokenizer = with_template(own, config.prompt_type)
    family = family_of(policy, base=base_under_adapters(config, policy), trust=trusted)
    limits = fitting_limits(config, inputs, tokenizer, policy, family)
    stops = stop_tokens(
        tokenizer,
        stop_token=config.stop_token,
        stop_token_id=config.stop_token_id,
        vocab_size=limits.rows,
        model=ModelEnds.of(base_under_adapters(config, policy) or policy, family),
        template_kwargs=config.chat_template_kwargs,
    )
    run_prompts = make_run_prompts(
        config,
        train_dataset=inputs.train_dataset,
        eval_dataset=inputs.eval_dataset,
        tokenizer=tokenizer,
        limits=limits,
        backend=backend,
    )
    check_critic_columns(config, run_prompts)
    specs = reward_specs(
        config,
        columns=run_prompts.prompts.columns,
        reward_models=inputs.reward_model,
        reward_funcs=inputs.reward_funcs,
    )
    judges = judge_specs(config, run_prompts)
    check_reward_models(config, inputs, specs, tokenizer, limits)
    batch = batch_sizes(config, run_prompts.rows, backend.world_size)
    if config.push_to_hub and backend.is_main:
        check_hub(config.hub_model_id or Path(config.output_dir).resolve().name)
    digest = run_prompts.digest()
    return CheckedInputs(
        backend, tokenizer, limits.rows, stops, run_prompts, specs, judges, batch, resumed, digest, limits.positions
    )
