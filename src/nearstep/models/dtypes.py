"""Which types weights may have, by name, and those that can be trained; where models are put that only read."""

from collections.abc import Callable

import torch
from torch import nn

from nearstep.models.quantised import is_quantised

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def without_float16(model: nn.Module, role: str, notes: list[str]) -> nn.Module:
    """The model, its weights made float32 in place if any of them is float16; then a note says so.

    float16 has no numbers below 6e-8, where gradients of token losses lie, and a loss scaled against that needs steps
    to be thrown away; Adam's second moment and its epsilon of 1e-8 are 0 in it. bfloat16 has the range of float32.
    Frozen weights under adapters are changed too: gradients pass through them.
    """
    if all(weight.dtype != torch.float16 for weight in model.parameters()):
        return model
    notes.append(
        f"{role}: float16 weights are trained and saved in float32, because gradients and steps are too small for "
        "float16. Pass the model in bfloat16 to halve the weights."
    )
    return model.float()


def without_slow_float16(model: nn.Module, role: str, device: torch.device, notes: list[str]) -> nn.Module:
    """The frozen model, its weights made float32 in place if any of them is float16 and a CPU reads it; a note says so.

    Processors widen float16 for every product: that is several times slower, and away from a policy in float32 by
    rounding. Packed weights stay as they are.
    """
    has_float16 = any(weight.dtype == torch.float16 for weight in model.parameters())
    if device.type != "cpu" or not has_float16 or is_quantised(model):
        return model
    notes.append(f"{role}: float16 weights are read in float32, for a CPU is several times slower in float16.")
    return model.float()


def on_device(*, use_cpu: bool) -> Callable[[nn.Module], nn.Module]:
    """What moves a model to the GPU of this process if there is one, else to the CPU; no other process takes part."""
    has_gpu = torch.cuda.is_available() and not use_cpu
    device = torch.device("cuda", torch.cuda.current_device()) if has_gpu else torch.device("cpu")
    return lambda model: model.to(device)
