"""Which axis an object belongs to: by its protocol."""

import inspect
from typing import Literal, TypeAlias, get_args

from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.common.errors import ConfigError, shorten
from nearstep.rewards.ask import RewardSource
from nearstep.rollout.engine import RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.schedules import CriticSchedule

Kind: TypeAlias = Literal["trust_region", "reward", "engine", "critic_schedule", "backend"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(found: object) -> Kind:
    """The axis of an object, or of an engine's class; a function of which nothing else is known is a reward.

    Raises ConfigError for anything else.
    """
    if isinstance(found, RolloutEngine) or (inspect.isclass(found) and issubclass(found, RolloutEngine)):
        return "engine"
    if isinstance(found, TrustRegion):
        return "trust_region"
    if isinstance(found, CriticSchedule):
        return "critic_schedule"
    if isinstance(found, Backend):
        return "backend"
    if isinstance(found, RewardSource) or (callable(found) and not inspect.isclass(found)):
        return "reward"
    raise ConfigError(f"{shorten(found)} has the members of no axis; say what it shall be: kind = {', '.join(KINDS)}")
