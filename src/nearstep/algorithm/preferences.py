"""What a reward model minimises, per pair or per text: Bradley and Terry's loss, its centring, squared error.

Each returns one number per pair or text. The caller divides their sum by a count that is fixed before any split into
micro-batches or processes.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from nearstep.algorithm.precision import wide


def preference_loss(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    *,
    preferences: Float[Tensor, " pairs"],
    margins: Float[Tensor, " pairs"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, " pairs"]:
    """−p·log σ(Δ) − (1 − p)·log σ(−Δ), with Δ = chosen − rejected − margin (Bradley and Terry, 1952).

    p is the probability that the chosen text is the better one (1 for a plain pair, ½ for a tie), drawn towards ½ by
    label smoothing: p(1 − s) + (1 − p)s. Margins are those of 2307.09288, eq. 2.
    """
    gap = wide(chosen) - wide(rejected) - margins
    target = preferences * (1 - 2 * label_smoothing) + label_smoothing
    return -target * logsigmoid(gap) - (1 - target) * logsigmoid(-gap)


def centring_loss(chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """(chosen + rejected)²: pulls the mean reward of a pair to 0, which the preferences leave open (2312.09244)."""
    return (wide(chosen) + wide(rejected)).square()


def squared_error(rewards: Float[Tensor, " texts"], targets: Float[Tensor, " texts"]) -> Float[Tensor, " texts"]:
    """(reward − target)²."""
    return (wide(rewards) - targets).square()
