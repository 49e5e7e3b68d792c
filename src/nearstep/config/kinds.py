"""The axes of which an object of the user's may be held to its laws, by name."""

from typing import Literal, TypeAlias, get_args

Kind: TypeAlias = Literal[
    "trust_region",
    "advantage",
    "kl_controller",
    "critic_schedule",
    "loss_aggregation",
    "value_head",
    "correction",
    "sampler",
    "gate",
    "auxiliary_loss",
    "reward",
    "judge",
    "engine",
    "backend",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
