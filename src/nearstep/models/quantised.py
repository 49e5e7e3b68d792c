"""Weights in few bits: whether they can be loaded on this machine and trained, and how they become whole again."""

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.quantizers import AutoHfQuantizer

from nearstep.common.errors import ConfigError, ModelError
from nearstep.common.plugins import need_package
from nearstep.config.one_base import OneBaseSettings

LAID_ANEW = "support_avx512bf16_for_cpu"  # of bitsandbytes' Linear4bit


def check_quantised(config: PreTrainedConfig, role: str, *, trains: bool) -> None:
    """Raises ModelError for quantised weights whose library is missing, and where they would have to learn themselves.

    `trains`: whether the role trains without adapters. Weights that transformers makes whole again are as any others.
    """
    settings: dict[str, Any] | None = config.to_dict().get("quantization_config")
    if settings is None:
        return
    method = settings.get("quant_method") or "an unnamed method"
    what = f"{role}: its weights are quantised ({method})"
    try:
        quantizer = AutoHfQuantizer.from_config(dict(settings), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ModelError(
            f"{what} and cannot be loaded here: {reason}. Install what is missing, or give the model in float32, "
            "bfloat16 or float16."
        ) from error
    if trains and not vars(quantizer.quantization_config).get("dequantize", False):
        raise ModelError(
            f"{what}, so they cannot learn. Train adapters on them (use_peft; critic_trunk = adapter for a critic), or "
            "give the model in float32, bfloat16 or float16."
        )


def four_bit(config: OneBaseSettings, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How the policy's base is quantised as it is loaded (QLoRA, 2305.14314, section 3); None where it is not."""
    if not config.load_in_4bit:
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=config.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=config.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def check_four_bit(family: PreTrainedConfig, *, is_object: bool, has_adapters: bool, merges: bool) -> None:
    """Raise ConfigError, before weights are loaded, where load_in_4bit cannot be done or would be in vain.

    `merges`: new adapters are asked for over a folder of adapters, which are merged into the weights first.
    """
    need_package("bitsandbytes", "quant", "load_in_4bit", ConfigError)
    reason = None
    if is_object:
        reason = "is for models that are loaded from a folder or the hub, and model was passed as an object: load it so"
    elif "quantization_config" in family.to_dict():
        reason = "has nothing to do: the model's weights are quantised already. Leave it out"
    elif merges:
        reason = (
            "keeps weights that nothing can be merged into, and the policy's folder has adapters that new ones would "
            "stand on. Train these on (without use_peft), or save the merged model first"
        )
    elif not has_adapters:
        reason = (
            "keeps weights that cannot learn. Train adapters on them: use_peft, peft_config or a folder of adapters"
        )
    if reason is not None:
        raise ConfigError(f"load_in_4bit {reason}")


def is_quantised(model: nn.Module) -> bool:
    """Whether some weights of a model are packed into whole numbers."""
    return any(not weight.is_floating_point() for weight in model.parameters())


def keep_layout(model: nn.Module) -> nn.Module:
    """The model itself, its packed weights to stay as they lie.

    On a CPU with bfloat16 of AVX-512, bitsandbytes 0.50 lays them anew in place at the first pass without a gradient,
    for a kernel that has no backward pass: what learns after it would learn from other weights.
    """
    for module in model.modules():
        if LAID_ANEW in vars(module):
            setattr(module, LAID_ANEW, False)
    return model


def quantisation_of(model: nn.Module) -> list[object]:
    """The scales that bitsandbytes keeps beside packed weights, which are no tensors of the model."""
    return [state for module in model.modules() if (state := vars(module).get("quant_state")) is not None]


def in_full(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself with layers of whole weights, in its own type, where they were packed; others keep theirs."""
    from peft.utils.integrations import dequantize_module_weight

    for name, module in list(model.named_modules()):
        weight = module._parameters.get("weight")
        if weight is None or weight.is_floating_point():
            continue
        whole = dequantize_module_weight(module).to(model.dtype)
        bias = module._parameters.get("bias")
        with torch.device("meta"):
            layer = nn.Linear(whole.shape[1], whole.shape[0], bias=bias is not None)
        layer.weight, layer.bias = nn.Parameter(whole, requires_grad=False), bias
        model.set_submodule(name, layer)
    for each in (model.config, model.config.get_text_config()):
        vars(each).pop("quantization_config", None)
    for noted in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        vars(model).pop(noted, None)
    return model
