"""Which types weights may have: by name, and those that can be trained."""

import torch
from torch import nn

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
