"""How LoRA adapters come onto a model. peft is imported here and nowhere else in this room."""

import copy
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.random_streams import stream_seed
from nearstep.config.shared import ModelSettings


def lora_from(config: ModelSettings, *, task: str = "CAUSAL_LM") -> Any:
    """peft's LoraConfig for the settings. Raises ConfigError where peft is not installed."""
    peft = _peft()
    return peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=None if config.lora_target_modules is None else list(config.lora_target_modules),
        task_type=task,
    )


def with_head_trained(peft_config: Any, heads: Sequence[str]) -> Any:
    """The same adapters, and the head trained whole and saved beside them, whatever the configuration forgot."""
    changed = copy.copy(peft_config)
    changed.modules_to_save = list(dict.fromkeys([*(peft_config.modules_to_save or ()), *heads]))
    return changed


def trained_copy(module: nn.Module) -> nn.Module:
    """The copy of a module that peft trains and saves whole, where it does; else the module itself."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(module, peft.utils.ModulesToSaveWrapper):
        return module
    (name,) = module.active_adapters
    copies: nn.ModuleDict = module.modules_to_save
    return copies[name]


def base_layer(module: object) -> object:
    """The layer under peft's adapters, or in the copy that peft trains whole; else the module itself."""
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(module, nn.Module):
        return module
    module = trained_copy(module)
    return module.get_base_layer() if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) else module


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


def without_adapters(model: nn.Module) -> PreTrainedModel:
    """The model under peft's wrapper as a second set of modules over the same tensors: no weight is copied.

    Adapters of either one do not reach the other.
    """
    tensors: dict[int, object] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    base: PreTrainedModel = copy.deepcopy(model, tensors).unload()  # type: ignore[operator]
    return base


def adapters_of(model: nn.Module) -> Any:
    """The configuration of the adapters that a peft model uses now."""
    return model.active_peft_config


def saved_tensor_names(folder: str, role: str) -> tuple[set[str], str]:
    """The tensors in a folder of adapters, and the model that the adapters belong to."""
    peft = _peft()
    try:
        base: str | None = peft.PeftConfig.from_pretrained(folder).base_model_name_or_path
        names = set(peft.load_peft_weights(folder, device="cpu"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{role}: no adapters could be read from {folder!r}: {error}") from error
    if base is None:
        raise ModelError(
            f"{role}: the adapters in {folder!r} do not say to which model they belong (base_model_name_or_path). "
            "Give the folder of the merged model instead."
        )
    return names, base


def merge_adapters_from(folder: str, model: PreTrainedModel) -> PreTrainedModel:
    """The model with the adapters of a folder added to its weights."""
    merged: PreTrainedModel = _peft().PeftModel.from_pretrained(model, folder).merge_and_unload()
    return merged
