"""Entrances that other libraries had, on the parts of this one: TRL's PPOTrainer up to 0.11, `create_rl_trainer`."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nearstep.classic.config import ClassicPPOConfig as PPOConfig
    from nearstep.classic.models import LengthSampler, create_reference_model, respond_to_batch
    from nearstep.classic.models import NoEncoderDecoder as AutoModelForSeq2SeqLMWithValueHead
    from nearstep.classic.models import ValueHeadModel as AutoModelForCausalLMWithValueHead
    from nearstep.classic.trainer import ClassicPPOTrainer as PPOTrainer

# TRL's names, and what they are here; imported when they are asked for.
_HOMES = {
    "PPOConfig": ("nearstep.classic.config", "ClassicPPOConfig"),
    "PPOTrainer": ("nearstep.classic.trainer", "ClassicPPOTrainer"),
    "AutoModelForCausalLMWithValueHead": ("nearstep.classic.models", "ValueHeadModel"),
    "create_reference_model": ("nearstep.classic.models", "create_reference_model"),
    "LengthSampler": ("nearstep.classic.models", "LengthSampler"),
    "AutoModelForSeq2SeqLMWithValueHead": ("nearstep.classic.models", "NoEncoderDecoder"),
    "respond_to_batch": ("nearstep.classic.models", "respond_to_batch"),
}

__all__ = [
    "AutoModelForCausalLMWithValueHead",
    "AutoModelForSeq2SeqLMWithValueHead",
    "LengthSampler",
    "PPOConfig",
    "PPOTrainer",
    "create_reference_model",
    "respond_to_batch",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    module, own = _HOMES[name]
    return vars(import_module(module))[own]
