"""In which type log-probabilities and losses are computed: float32 at least, whatever the model's."""

import torch
from jaxtyping import Float
from torch import Tensor


def wide(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`values` in float32, or in float64 where they already are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
