"""Which roles come as adapters on the policy's frozen weights: checked before loading, put on once these are there."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from nearstep.assembly.inputs import RunInputs
from nearstep.common.errors import ConfigError, ModelError
from nearstep.config.one_base import VF_LORA
from nearstep.config.ppo import PPOConfig
from nearstep.models.adapter_folders import holds_adapters, read_adapters
from nearstep.models.adapters import POLICY_TASKS, REWARD_TASKS, adapters_of, check_peft_config, targets
from nearstep.models.one_base import scalar_on_base
from nearstep.models.roles import transformers_model
from nearstep.rewards.build import NamedFunction, RewardSpec
from nearstep.training.eight_bit import check_eight_bit


def check_roles_on_base(config: PPOConfig, inputs: RunInputs) -> None:
    """Raise ConfigError or ModelError where a role that is to stand on the policy's base cannot, by its form alone, and
    where the package of an optimizer is missing."""
    check_eight_bit(config)
    if inputs.value_peft_config is not None:
        check_peft_config(inputs.value_peft_config, (*POLICY_TASKS, *REWARD_TASKS), "value_peft_config")
    if inputs.value_peft_config is not None and config.critic_trunk != "adapter":
        raise ConfigError(
            f"value_peft_config: with critic_trunk = {config.critic_trunk} no adapters are put on for the critic. Use "
            "critic_trunk = adapter, or pass value_model with its own adapters"
        )
    given = config.value_model_path
    if config.critic_trunk == "adapter" and given is not None:
        if not holds_adapters(given):
            raise ModelError(
                f"value_model: with critic_trunk = adapter the critic is adapters and a head on the policy's weights, "
                f"and {given!r} is a whole model. Give a folder of adapters (value_adapter, reward_adapter), or use "
                "critic_trunk = separate"
            )
        if inputs.value_peft_config is not None or any(vars(config)[name] is not None for name in VF_LORA):
            raise ConfigError(
                "value_model_path has the critic's adapters, and value_peft_config or vf_lora_… asks for new ones: "
                "give one"
            )


def check_rewards_on_base(config: PPOConfig, specs: Sequence[RewardSpec]) -> None:
    """Raise ConfigError where reward_trunk = adapter finds no reward model, ModelError for one that is no folder of
    adapters."""
    if config.reward_trunk == "separate":
        return
    if config.random_reward_head:
        raise ConfigError("random_reward_head gives a whole model a head; with reward_trunk = adapter there is none")
    models = [spec for spec in specs if not isinstance(spec, NamedFunction)]
    if not models:
        raise ConfigError("reward_trunk = adapter: there is no reward model (reward_model_path). Leave it out")
    for spec in models:
        if isinstance(spec, nn.Module) or not holds_adapters(spec):
            what = f"a {type(spec).__name__}" if isinstance(spec, nn.Module) else f"{spec!r}, a whole model,"
            raise ModelError(
                f"reward_model: reward_trunk = adapter needs the folder of a reward model's adapters, and {what} was "
                "given. Train one with nearstep reward --use_peft on the policy's base (it leaves reward_adapter), or "
                "use reward_trunk = separate"
            )


def rewards_on_base(
    config: PPOConfig,
    specs: Sequence[RewardSpec],
    apart: list[PreTrainedModel | None],
    policy: nn.Module,
    pad_token_id: int | None,
    notes: list[str],
) -> list[PreTrainedModel | None]:
    """The reward model of every entry, None for functions: on the frozen weights under the policy's adapters with
    reward_trunk = adapter, else `apart`, each a model of its own."""
    if config.reward_trunk == "separate":
        return apart
    found: list[PreTrainedModel | None] = []
    for spec in specs:
        if not isinstance(spec, str):
            found.append(None)
            continue
        folder = read_adapters(spec, "reward_model", trust=config.trust)
        model = scalar_on_base(folder, policy, pad_token_id)
        found.append(transformers_model(model, "reward_model"))
        notes.append(f"The reward model {spec} is its adapters on the policy's frozen weights: nothing is copied.")
    return found


def critic_on_base(config: PPOConfig, place: str, policy: nn.Module, pad_token_id: int | None) -> nn.Module:
    """A critic whose adapters and head go on from a folder, on the frozen weights under the policy's adapters."""
    return scalar_on_base(read_adapters(place, "value_model", trust=config.trust), policy, pad_token_id)


def critic_adapters(config: PPOConfig, inputs: RunInputs, policy: nn.Module) -> Any:
    """peft's configuration of a new critic's adapters: as passed, else the policy's with what vf_lora_… changes."""
    if inputs.value_peft_config is not None:
        return inputs.value_peft_config
    chosen = copy.copy(inputs.peft_config if inputs.peft_config is not None else adapters_of(policy))
    asked = [name for name in VF_LORA if vars(config)[name] is not None]
    if not asked:
        return chosen
    if chosen.peft_type.value != "LORA":
        raise ConfigError(
            f"{asked[0]} changes a LoRA configuration, and the policy's adapters are {chosen.peft_type.value}. Pass "
            "value_peft_config"
        )
    changes = {"r": config.vf_lora_r, "lora_alpha": config.vf_lora_alpha}
    vars(chosen).update({name: value for name, value in changes.items() if value is not None})
    if config.vf_lora_target_modules is not None:
        chosen.target_modules = targets(config.vf_lora_target_modules, "vf_lora_target_modules")
    return chosen
