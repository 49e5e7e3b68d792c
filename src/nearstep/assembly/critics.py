"""Which model the critic is, or models where there are several, and how it is made ready."""

import copy
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.algorithm.value_heads import ValueHead
from nearstep.assembly.inputs import RunInputs, reader_of
from nearstep.assembly.one_base import critic_adapters, critic_on_base
from nearstep.common.errors import ConfigError, ModelError
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.adapters import as_peft_model, is_adapted, require_learning, with_adapters_merged
from nearstep.models.critic_folders import copies_of, critics_in
from nearstep.models.dtypes import DTYPES, without_float16
from nearstep.models.frozen_weights import freeze
from nearstep.models.head_bias import bias_note
from nearstep.models.load import (
    check_folder,
    critic_from_trunk,
    load_adapted_scalar_model,
    load_scalar_model,
    with_value_head,
)
from nearstep.models.quantised import in_full, is_quantised
from nearstep.models.reward_model import is_decoder
from nearstep.models.roles import Critic, Critics, inner_model, make_critic, transformers_model
from nearstep.models.shared_trunk import critic_under_adapters
from nearstep.models.stored_head import require_head
from nearstep.rewards.identity import reads_ids_of


def critics_of(
    config: PPOConfig,
    inputs: RunInputs,
    policy: nn.Module,
    reward_model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    head: ValueHead,
    notes: list[str],
) -> nn.Module:
    """The critic, or as many as there are to be: from a folder that holds several, else all alike at first."""
    given = inputs.value_model if inputs.value_model is not None else config.value_model_path
    count = config.critic_models
    folders = critics_in(given)
    starts: list[Any] = [*folders] or [given]
    found = [_critic(config, inputs, start, policy, reward_model, tokenizer, head, notes) for start in starts]
    if count > 1:
        notes.append(
            f"There are {count} critics, each trained on other responses to a prompt; the value is their mean."
        )
    if folders:
        return nn.ModuleList(found)
    return copies_of(found[0], count) if count > 1 else found[0]


def _critic(
    config: PPOConfig,
    inputs: RunInputs,
    given: nn.Module | str | None,
    policy: nn.Module,
    reward_model: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    head: ValueHead,
    notes: list[str],
) -> nn.Module:
    """The critic as given, else started from a reward model that reads the same ids, else from the policy's trunk."""
    critic: nn.Module
    if isinstance(given, nn.Module):
        critic = as_peft_model(given)
        require_learning(critic, "value_model")
        notes += bias_note(inner_model(critic), "value_model")
        return without_float16(critic, "value_model", notes)
    if given is not None:
        check_folder(given, "value_model")
        load = load_adapted_scalar_model if holds_adapters(given) else load_scalar_model
        critic = load(given, role="value_model", dtype=DTYPES[config.dtype], trust=config.trust, value_head=head)
        notes += bias_note(inner_model(critic), "value_model")
        return critic
    if reward_model is not None and is_decoder(reward_model):
        own = reader_of(reward_model, config, inputs, tokenizer)
        if reads_ids_of(own, tokenizer):
            new = ", its head at zero" if head.starts_at_zero else ""
            notes.append(f"The critic starts from the reward model{new}.")
            started = with_value_head(
                copy.deepcopy(reward_model).requires_grad_(True), head, at_zero=head.starts_at_zero
            )
            return without_float16(started, "value_model", notes)
        notes.append(
            "The reward model has another tokenizer, so the critic starts from the policy's trunk, its head at zero."
        )
    else:
        notes.append("The critic starts from the policy's trunk, its head at zero.")
    if not isinstance(inner_model(policy), PreTrainedModel):
        raise ModelError(
            f"value_model: no critic can be made from a {type(policy).__name__}, which is no transformers model. Pass "
            "value_model, a module that maps ids and mask to one number a token, or use an advantage without a critic."
        )
    start = with_adapters_merged(policy) if is_adapted(policy) else transformers_model(policy, "model")
    if is_quantised(start):
        start = in_full(copy.deepcopy(start))
    critic = critic_from_trunk(start, pad_token(tokenizer), head)
    return critic


def critic_role(model: nn.Module, config: PPOConfig, head: ValueHead, notes: list[str]) -> Critic | Critics:
    """Critics with models, or adapters, of their own; what vf_frozen names does not train."""
    if isinstance(model, nn.ModuleList):
        members = [_one_critic(each, config, head, notes if number == 0 else []) for number, each in enumerate(model)]
        return Critics(tuple(members), model)
    return _one_critic(model, config, head, notes)


def _one_critic(model: nn.Module, config: PPOConfig, head: ValueHead, notes: list[str]) -> Critic:
    critic = make_critic(model, autocast=config.bf16, checkpointing=recomputed(config), value_head=head)
    notes += freeze(critic.model, config.vf_frozen)
    return critic


def adapted_critic(
    config: PPOConfig,
    inputs: RunInputs,
    policy: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    head: ValueHead,
    notes: list[str],
) -> nn.Module:
    """A critic on the policy's frozen weights. Raises ConfigError where the policy has no adapters over them."""
    if not is_adapted(policy):
        raise ConfigError(
            "critic_trunk = adapter: the critic uses the frozen weights under the policy's adapters, and it has none. "
            "Set use_peft, pass peft_config, or use critic_trunk = separate or shared"
        )
    given = config.value_model_path
    if given is not None:
        require_head(None, head, f"value_model: the folder of adapters {given!r}")
        notes.append("The critic goes on training the adapters and the head in its folder, on the policy's weights.")
        return critic_on_base(config, given, policy, pad_token(tokenizer))
    notes.append("The critic has adapters of its own on the policy's frozen weights, its head at zero.")
    chosen = critic_adapters(config, inputs, policy)
    return critic_under_adapters(policy, chosen, pad_token(tokenizer), head, seed=config.seed)


def recomputed(config: PPOConfig) -> int:
    """n where every n-th layer is recomputed in the backward pass, 0 where none is."""
    return config.gradient_checkpointing_every if config.gradient_checkpointing else 0


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that a critic's folder names as padding."""
    pad: int | None = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return pad
