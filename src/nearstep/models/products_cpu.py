"""Products of states and weights on a CPU: float32, nothing differentiated.

Torch's own `mm` takes MKL; oneDNN, which comes with torch too, is up to a fifth faster for the shapes of a layer
(docs/performance.md). Torch offers it under a name that is meant for its compiler, so it is tried first.
"""

from functools import cache
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

States: TypeAlias = Float[Tensor, "tokens width"]
Weight: TypeAlias = Float[Tensor, "wide width"]
Wide: TypeAlias = Float[Tensor, "tokens wide"]
FEW = 64  # tokens below which oneDNN takes longer to begin than it saves


@cache
def onednn_there() -> bool:
    """Whether torch has oneDNN's product, and it gives what it should."""
    if not torch.backends.mkldnn.is_available():
        return False
    left, right, beside = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([[7.0, 8.0]])
    try:
        found = [
            _by_onednn(left, right, None),
            _by_onednn(left, right.T, beside[0]),
            _sum_by_onednn(beside, left, right),
        ]
    except (AttributeError, RuntimeError, TypeError):  # a torch that calls it otherwise
        return False
    return [one.tolist() for one in found] == [[[11, 17]], [[20, 24]], [[18, 25]]]


def times(states: States, weight: Weight, bias: Float[Tensor, " wide"] | None = None) -> Wide:
    """states · weightᵀ + bias; the weight in any layout."""
    if len(states) >= FEW and onednn_there():
        return _by_onednn(states, weight, bias)
    return states @ weight.T if bias is None else torch.addmm(bias, states, weight.T)


def added_to(beside: Wide, states: States, weight: Weight) -> Wide:
    """beside + states · weightᵀ; the weight in any layout."""
    if len(states) >= FEW and onednn_there():
        return _sum_by_onednn(beside, states, weight)
    return torch.addmm(beside, states, weight.T)


def _by_onednn(states: States, weight: Weight, bias: Float[Tensor, " wide"] | None) -> Wide:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")
    return product


def _sum_by_onednn(beside: Wide, states: States, weight: Weight) -> Wide:
    total: Tensor = torch.ops.mkldnn._linear_pointwise.binary(states, beside, weight, None, "add")
    return total
