"""How a token is drawn: one uniform number per row and step, through the inverse of the cumulative distribution."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad


def draw(probabilities: Float[Tensor, "rows vocabulary"], uniform: Float[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """The token in which the cumulative probability passes `uniform` (in [0, 1)); never one of probability 0.

    In two steps, first a block of tokens and then a token of that block, each with its own short cumulative sum:
    faster than one sum over the vocabulary, and more exact.
    """
    vocabulary = probabilities.shape[-1]
    width = math.isqrt(vocabulary - 1) + 1
    blocks = pad(probabilities, (0, -vocabulary % width)).unflatten(-1, (-1, width))
    block_mass = blocks.sum(-1).cumsum(-1)
    target = uniform.to(probabilities.dtype) * block_mass[:, -1]
    block = _first_above(block_mass, target)
    before = torch.where(block > 0, block_mass.gather(-1, (block - 1).clamp(min=0)[:, None])[:, 0], 0)
    rows = torch.arange(len(probabilities), device=probabilities.device)
    place = _first_above(blocks[rows, block].cumsum(-1), target - before)
    return block * width + place


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """First place where `cumulative` exceeds `target`; if rounding leaves none, where it reaches its end."""
    limit = torch.minimum(target, torch.nextafter(cumulative[:, -1], torch.zeros_like(target)))
    return (cumulative > limit[:, None]).int().argmax(-1)
