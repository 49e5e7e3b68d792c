"""Which models, tokenizers and functions have which role, given the settings and the user's objects."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from nearstep.assembly.axes import Axes
from nearstep.assembly.critics import adapted_critic, critic_role, critics_of, pad_token, recomputed
from nearstep.assembly.inputs import RunInputs, reader_of
from nearstep.assembly.offload import frozen_on_host, reward_offload
from nearstep.assembly.one_base import rewards_on_base
from nearstep.assembly.policy_folder import load_policy_of, type_note, wants_new_adapters, wider_type
from nearstep.assembly.reference import reference_of
from nearstep.assembly.reward_head import load_reward_models
from nearstep.assembly.rows import how_rows_run
from nearstep.assembly.spreading import spread_over
from nearstep.assembly.teacher import teacher_of
from nearstep.common.errors import ConfigError, ModelError
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapters import (
    add_adapters,
    as_peft_model,
    is_adapted,
    lora_from,
    require_learning,
)
from nearstep.models.dtypes import DTYPES, without_float16, without_slow_float16
from nearstep.models.head_bias import bias_note
from nearstep.models.quantised import keep_layout
from nearstep.models.roles import (
    Critic,
    Critics,
    Models,
    make_policy,
)
from nearstep.models.shared_trunk import critic_on_trunk
from nearstep.models.tokenizers import name_or_path
from nearstep.models.unsloth_loading import adapt_by_unsloth, loading_note
from nearstep.rewards.build import (
    RewardModelOptions,
    RewardSpec,
    make_sources,
)
from nearstep.rewards.identity import TokenizerIdentity
from nearstep.rewards.protocol import RewardSource
from nearstep.scale.backend import Backend


@dataclass(frozen=True)
class BuiltModels:
    """The models of a run, the reward sources, and what the user should know of how they were chosen."""

    models: Models
    sources: list[RewardSource]
    names: "ModelOrigins"
    notes: list[str]

    @property
    def critic_model(self) -> nn.Module | None:
        """The critic's own model, that of the first where there are several; None without a critic."""
        return None if self.models.critic is None else self.models.critic.members[0].model


@dataclass(frozen=True)
class ModelOrigins:
    """Where the models came from: folders or hub names, None for objects made in memory."""

    policy: str | None
    reference: str | None
    critic: str | None
    stored: str | None = None  # the type of the policy's weights in its folder, where it is another here


def policy_of(config: PPOConfig, inputs: RunInputs) -> nn.Module | str:
    """The policy as given: an object, a folder or a hub name. Raises ConfigError if there is none."""
    given = inputs.model or config.sft_model_path or config.model_name_or_path
    if given is None:
        raise ConfigError("no policy: pass model, or set model_name_or_path")
    return given


def build_models(
    config: PPOConfig,
    inputs: RunInputs,
    specs: Sequence[RewardSpec],
    tokenizer: PreTrainedTokenizerBase,
    vocabulary: int,
    backend: Backend,
    axes: Axes,
) -> BuiltModels:
    """Load and prepare every model. Raises ModelError for one that does not fit its role.

    Policy and reference give probabilities to the ids below `vocabulary` alone.
    """
    _check_distinct(inputs)
    needs_critic = axes.advantage.needs_critic
    _check_critic(config, inputs, needs_critic=needs_critic)
    notes: list[str] = []
    dtype = DTYPES[config.dtype]

    plain = keep_layout(_policy_as_given(config, inputs, notes))
    options = RewardModelOptions(
        dtype, config.trust, config.bf16, config.max_tokens_per_microbatch, backend.place, config.seed,
        config.chat_template_kwargs, reward_offload(config, backend.device),
    )  # fmt: skip
    loaded = load_reward_models(specs, options, config, pad_token(tokenizer), notes)
    first = loaded[0] if loaded else None
    separate = needs_critic and config.critic_trunk == "separate"
    head = axes.value_head
    critic = critics_of(config, inputs, plain, first, tokenizer, head, notes) if separate else None
    model = backend.stage(_adapted(plain, config, inputs, notes))
    loaded = rewards_on_base(config, specs, loaded, model, pad_token(tokenizer), notes)
    _note_rewards(loaded, backend, notes)
    if needs_critic and config.critic_trunk == "adapter":
        critic = adapted_critic(config, inputs, model, tokenizer, head, notes)
    policy = make_policy(model, autocast=config.bf16, checkpointing=recomputed(config), vocabulary=vocabulary)
    sources = make_sources(
        config,
        list(zip(specs, loaded, strict=True)),
        lambda model: reader_of(model, config, inputs, tokenizer),
        TokenizerIdentity.of(tokenizer),
        options,
    )
    reference = reference_of(
        config, inputs, policy, backend, notes, kl_penalty=axes.kl_penalty, fresh_adapters=not is_adapted(plain)
    )
    value: Critic | Critics | None = None
    if critic is not None:
        value = critic_role(backend.stage(critic), config, head, notes)
    elif needs_critic:
        value = critic_on_trunk(policy, pad_token(tokenizer), head, inputs.trunk_head)
        start = "a head of zeros" if inputs.trunk_head is None else "the value head that was saved with it,"
        notes.append(f"The critic is {start} on the policy's trunk.")
    models = Models(policy, reference, value, teacher_of(config, inputs, policy, backend, notes))
    notes += how_rows_run(models, autocast=config.bf16)
    names = _origins(config, inputs, models, notes)
    lying = frozen_on_host(config, spread_over(backend, models), backend.device, notes)
    return BuiltModels(lying, sources, names, notes)


def _origins(config: PPOConfig, inputs: RunInputs, models: Models, notes: list[str]) -> ModelOrigins:
    """Where the models came from; a policy that lies in its folder in another type is noted."""
    stored = wider_type(policy_of(config, inputs), config)
    notes += [] if stored is None else [type_note(stored, config)]
    reference, critic = models.reference, models.critic
    return ModelOrigins(
        policy=name_or_path(models.policy.model),
        reference=None if reference is None else name_or_path(reference.policy.model),
        critic=None if critic is None else name_or_path(critic.members[0].model),
        stored=stored,
    )


def _policy_as_given(config: PPOConfig, inputs: RunInputs, notes: list[str]) -> nn.Module:
    """The policy before adapters are put on: an object as it is, a folder in the type that the settings name."""
    given, dtype = policy_of(config, inputs), DTYPES[config.dtype]
    if isinstance(given, str):
        return without_float16(load_policy_of(given, config, inputs, notes), "model", notes)
    given = as_peft_model(given)
    if not wants_new_adapters(config, inputs):
        require_learning(given, "model")
    if config.dtype != "float32" and dtype not in {weight.dtype for weight in given.parameters()}:
        notes.append(f"dtype = {config.dtype} is for folders: model was passed as an object and keeps its own type.")
    return without_float16(given, "model", notes)


def _note_rewards(loaded: Sequence[nn.Module | None], backend: Backend, notes: list[str]) -> None:
    """Reward models in a type that the device is quick in; what is to be known of their weights."""
    for model in loaded:
        if model is not None:
            without_slow_float16(model, "reward_model", backend.device, notes)
            notes += bias_note(model, "reward_model")


def _check_distinct(inputs: RunInputs) -> None:
    """One object cannot be trained and stay what it is."""
    trained = {"model": inputs.model, "value_model": inputs.value_model}
    others = [*trained.items(), ("ref_model", inputs.ref_model), ("teacher_model", inputs.teacher_model)]
    others += [("reward_model", model) for model in inputs.reward_model]
    for name, model in trained.items():
        for other, same in others:
            if name != other and isinstance(model, nn.Module) and model is same:
                raise ModelError(
                    f"{name} and {other} are the same object, but {name} is trained: pass a copy (copy.deepcopy), "
                    "or None for what nearstep makes itself"
                )


def _check_critic(config: PPOConfig, inputs: RunInputs, *, needs_critic: bool) -> None:
    """A critic can be passed only where it has a model of its own."""
    if inputs.value_model is None:
        return
    if not needs_critic:
        rule = config.advantage if inputs.advantage is None else "the object that was passed"
        raise ModelError(f"value_model: advantage = {rule} has no critic; leave it out, or use advantage = gae")
    if config.critic_trunk != "separate":
        raise ModelError(
            f"value_model: with critic_trunk = {config.critic_trunk} the critic is made from the policy's weights; "
            "leave it out, or use critic_trunk = separate"
        )


def _adapted(model: nn.Module, config: PPOConfig, inputs: RunInputs, notes: list[str]) -> nn.Module:
    """The policy with new adapters if they are asked for."""
    if inputs.peft_config is not None:
        return add_adapters(model, inputs.peft_config, seed=config.seed)
    if config.model_loader == "unsloth":
        model = adapt_by_unsloth(model, config, seed=config.seed) if config.use_peft else model
        notes.append(loading_note(model))
        return model
    return add_adapters(model, lora_from(config), seed=config.seed) if config.use_peft else model
