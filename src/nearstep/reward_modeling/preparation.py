"""How the model that becomes a reward model is chosen, loaded, and made ready for training."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nearstep.common.errors import ConfigError, ModelError
from nearstep.config.reward_model import RewardConfig
from nearstep.models.adapter_folders import holds_adapters
from nearstep.models.adapters import (
    add_adapters,
    as_peft_model,
    is_adapted,
    lora_from,
    require_learning,
    with_head_trained,
)
from nearstep.models.dtypes import DTYPES, without_float16
from nearstep.models.head_bias import add_bias
from nearstep.models.limits import Limits
from nearstep.models.load import holds_head, load_adapted_scalar_model
from nearstep.models.output_layers import HEAD_NAMES, output_layer
from nearstep.models.reward_model import RewardReader, make_reader
from nearstep.models.reward_start import start_reward_model
from nearstep.models.roles import transformers_model
from nearstep.models.saving import padding_token
from nearstep.training.master_weights import is_narrow
from nearstep.training.optimizers import MASTERS_NOTE, trained_weights


@dataclass(frozen=True)
class RewardModelInTraining:
    """The model under training: `model` is peft's wrapper where there are adapters, `inner` transformers' own."""

    model: nn.Module
    inner: PreTrainedModel
    head: nn.Linear
    reader: RewardReader
    notes: list[str]


def choose_model(config: RewardConfig, given: nn.Module | str | None) -> nn.Module | str:
    """The model as given: an object, a folder or a hub name. Raises ConfigError if there is none."""
    chosen = given if given is not None else config.model_name_or_path
    if chosen is None:
        raise ConfigError("no model: pass model, or set model_name_or_path")
    return chosen


def longest_text(config: RewardConfig, limits: Limits) -> int | None:
    """max_length, or the model's positions; None where neither limits. Raises ConfigError where they clash."""
    positions = limits.positions
    if positions is not None and (config.max_length or 0) > positions:
        raise ConfigError(f"max_length = {config.max_length} is more than the model's {positions} positions")
    return config.max_length or positions


def prepare(
    config: RewardConfig, given: nn.Module | str, tokenizer: PreTrainedTokenizerBase, peft_config: Any
) -> RewardModelInTraining:
    """Load the model, give it a head and adapters as asked. Raises ModelError for one that cannot learn rewards."""
    pad = padding_token(tokenizer)
    given = _with_its_adapters(config, given, peft_config)
    model, is_new = start_reward_model(
        given,
        seed=config.seed,
        dtype=DTYPES[config.dtype],
        pad_token_id=pad,
        trust=config.trust,
    )
    if config.normalize != "none":
        add_bias(model, output_layer(model, "model"))
    notes = ["The head is new." if is_new else "The model has a head already, which goes on learning."]
    without_float16(model, "model", notes)
    if isinstance(given, nn.Module) and is_adapted(given) and transformers_model(given, "model") is model:
        adapted = given
    else:
        adapted = _adapted(model, config, peft_config)
    reader = make_reader(
        adapted, role="model", pad_token_id=pad, autocast=config.bf16, checkpointing=config.gradient_checkpointing
    )
    if config.master_weights and any(is_narrow(weight) for weight in trained_weights(adapted)):
        notes.append(MASTERS_NOTE)
    return RewardModelInTraining(adapted, model, output_layer(model, "model"), reader, notes)


def _with_its_adapters(config: RewardConfig, given: nn.Module | str, peft_config: Any) -> nn.Module | str:
    """A reward model whose adapters train on as a peft model, unless new ones are asked for; else what was given."""
    new = config.use_peft or peft_config is not None
    if isinstance(given, nn.Module):
        given = as_peft_model(given)
        if is_adapted(given) and new:
            raise ModelError("model: it is a peft model already; pass either such a model or peft_config, not both")
        if not new and transformers_model(given, "model").get_output_embeddings() is None:
            require_learning(given, "model")  # a policy gives its weights to a new model, which learns
        return given
    if new or not holds_adapters(given) or not holds_head(given, "model"):
        return given
    return load_adapted_scalar_model(given, role="model", dtype=DTYPES[config.dtype], trust=config.trust)


def _adapted(model: nn.Module, config: RewardConfig, peft_config: Any) -> nn.Module:
    """The model with adapters if they are asked for; its head is trained whole in any case."""
    if peft_config is None and not config.use_peft:
        return model
    chosen = peft_config if peft_config is not None else lora_from(config, task="SEQ_CLS")
    heads = [name for name, _ in model.named_children() if name in HEAD_NAMES]
    return add_adapters(model, with_head_trained(chosen, heads), seed=config.seed)
