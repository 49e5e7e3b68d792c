"""Which axis an object belongs to: by its protocol."""

import inspect
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

from nearstep.algorithm.advantage_rules import Advantage
from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.kl_controllers import KLController
from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.common.errors import ConfigError, shorten
from nearstep.rewards.protocol import RewardSource
from nearstep.rollout.engine import RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.schedules import CriticSchedule

Kind: TypeAlias = Literal[
    "trust_region", "advantage", "kl_controller", "critic_schedule", "loss_aggregation", "reward", "engine", "backend"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
PROTOCOLS: Mapping[Kind, type] = {
    "trust_region": TrustRegion,
    "advantage": Advantage,
    "kl_controller": KLController,
    "critic_schedule": CriticSchedule,
    "loss_aggregation": LossAggregation,
    "backend": Backend,
}
TELLING: Mapping[str, Kind] = {
    "inside": "trust_region", "credit": "advantage", "phases": "critic_schedule", "weights": "loss_aggregation",
    "divisor": "loss_aggregation", "needs_critic": "advantage", "next": "kl_controller",
}  # fmt: skip


def kind_of(found: object) -> Kind:
    """The axis of an object, or of an engine's class; a function of which nothing else is known is a reward.

    An object that has one telling member of an axis and not all counts as that axis's: its laws name what is missing.
    Raises ConfigError for anything else.
    """
    if isinstance(found, RolloutEngine) or (inspect.isclass(found) and issubclass(found, RolloutEngine)):
        return "engine"
    for kind, protocol in PROTOCOLS.items():
        if isinstance(found, protocol):
            return kind
    if isinstance(found, RewardSource) or (callable(found) and not inspect.isclass(found)):
        return "reward"
    for member, kind in TELLING.items():
        if member in dir(found):
            return kind
    raise ConfigError(f"{shorten(found)} has the members of no axis; say which it is for: kind = {', '.join(KINDS)}")
