"""How LoRA adapters come onto a policy. peft is imported here and nowhere else in this room."""

import copy
import sys
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nearstep.config import PPOConfig
from nearstep.errors import ConfigError, ModelError
from nearstep.streams import stream_seed


def lora_from(config: PPOConfig) -> Any:
    """peft's LoraConfig for the settings. Raises ConfigError where peft is not installed."""
    peft = _peft()
    return peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=None if config.lora_target_modules is None else list(config.lora_target_modules),
        task_type="CAUSAL_LM",
    )


def add_adapters(model: nn.Module, peft_config: Any, *, seed: int) -> nn.Module:
    """The model with fresh adapters that change nothing yet. Raises ModelError if it has adapters already."""
    peft = _peft()
    if isinstance(model, peft.PeftModel):
        raise ModelError("model: it is a peft model already; pass either such a model or peft_config, not both")
    try:
        # peft draws from the global generator; it gets one of ours and the caller's is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "adapters"))
            adapted: nn.Module = peft.get_peft_model(model, peft_config)
            return adapted
    except ValueError as error:
        raise ModelError(f"model: peft could not add the adapters: {error}") from error


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("adapters need peft: pip install 'nearstep[peft]'") from error
    return peft


def is_adapted(model: nn.Module) -> bool:
    """Whether peft wraps the model. Without peft installed nothing can be."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def with_adapters_merged(model: nn.Module) -> PreTrainedModel:
    """A copy of a peft model with its adapters added to the base weights."""
    return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
