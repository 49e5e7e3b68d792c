"""Where in a response things happen: values, advantages, KL and the region's mask along the row, as sums."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nearstep.algorithm.kl import KLEstimator
from nearstep.algorithm.ragged import places_in_row, row_numbers
from nearstep.metrics import MeanBy, Metrics
from nearstep.scale.backend import Backend
from nearstep.training.token_kl import token_kl
from nearstep.types import Experience

TENTHS = 10


def tenths_of_row(counts: Int[Tensor, " rows"]) -> Int[Tensor, " actions"]:
    """In which tenth of its response each action stands, 0 to 9: of 4 actions in 0, 2, 5 and 7."""
    return places_in_row(counts) * TENTHS // counts[row_numbers(counts)]


def masked_by_place(experience: Experience, dropped: Float[Tensor, " actions"]) -> MeanBy:
    """Share of actions that the region leaves without a gradient: ten tenths of negative advantage, ten of positive.

    Actions whose advantage is 0 do not count.
    """
    signed = experience.advantages != 0
    groups = (experience.advantages > 0).long() * TENTHS + tenths_of_row(experience.rollout.action_counts)
    return MeanBy.of(dropped[signed], groups[signed], 2 * TENTHS)


def profile(
    experience: Experience, scored: Bool[Tensor, " rows"], estimator: KLEstimator, backend: Backend, *, has_critic: bool
) -> Metrics:
    """Means over the actions of scored rows, of this process: by tenth of the response, and by decile of the value.

    Every process calls it: the bounds between deciles are the means of those of all processes.
    """
    counted = scored.repeat_interleave(experience.rollout.action_counts)
    tenths = tenths_of_row(experience.rollout.action_counts)[counted]
    along = {"advantage_abs": experience.raw_advantages.abs()}
    if (kl := token_kl(experience, estimator)) is not None:
        along["kl"] = kl
    if has_critic:
        along |= {"value": experience.values, "return": experience.returns}
    found = {f"along_row/{name}": MeanBy.of(each[counted], tenths, TENTHS) for name, each in along.items()}
    if has_critic:
        values, returns = experience.values[counted], experience.returns[counted]
        deciles = torch.bucketize(values, _bounds(values, backend).to(values), right=True)
        found["value_deciles/value"] = MeanBy.of(values, deciles, TENTHS)
        found["value_deciles/return"] = MeanBy.of(returns, deciles, TENTHS)
    return Metrics(found)


def _bounds(values: Float[Tensor, " actions"], backend: Backend) -> Tensor:
    """The nine bounds between ten groups of about as many values each."""
    places = torch.arange(1, TENTHS) * len(values) // TENTHS
    own = values.sort().values[places.to(values.device)].tolist() if len(values) else None
    every = [bounds for bounds in backend.gather(own) if bounds is not None]
    return torch.tensor(every, dtype=torch.float64).mean(0) if every else torch.zeros(TENTHS - 1)
