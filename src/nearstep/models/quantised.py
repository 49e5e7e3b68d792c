"""Whether a model whose weights are stored in few bits can be loaded on this machine, and trained."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.quantizers import AutoHfQuantizer

from nearstep.common.errors import ModelError


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
