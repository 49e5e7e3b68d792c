"""Which axis an object belongs to: by its protocol."""

import inspect
from collections.abc import Mapping

from nearstep.algorithm.advantage_rules import Advantage
from nearstep.algorithm.aggregation import LossAggregation
from nearstep.algorithm.correction import CorrectionRule
from nearstep.algorithm.kl_controllers import KLController
from nearstep.algorithm.trust_regions import TrustRegion
from nearstep.algorithm.value_heads import ValueHead
from nearstep.assembly.auxiliary_checks import MEMBERS as AUXILIARY_MEMBERS
from nearstep.common.errors import ConfigError, shorten
from nearstep.config.kinds import KINDS, Kind
from nearstep.data.samplers import Sampler
from nearstep.judges.function import Compares, Grades
from nearstep.judges.protocol import JudgeSource
from nearstep.rewards.judging import Judge
from nearstep.rewards.protocol import RewardSource
from nearstep.rollout.build import MEMBERS as ENGINE_MEMBERS
from nearstep.rollout.engine import RolloutEngine
from nearstep.scale.backend import Backend
from nearstep.training.auxiliary import AuxiliaryLoss
from nearstep.training.gates import Gate
from nearstep.training.schedules import CriticSchedule

PROTOCOLS: Mapping[Kind, type] = {
    "trust_region": TrustRegion,
    "advantage": Advantage,
    "kl_controller": KLController,
    "critic_schedule": CriticSchedule,
    "loss_aggregation": LossAggregation,
    "value_head": ValueHead,
    "correction": CorrectionRule,
    "sampler": Sampler,
    "gate": Gate,
    "auxiliary_loss": AuxiliaryLoss,
    "backend": Backend,
}
TELLING: Mapping[str, Kind] = {
    "weight": "trust_region",
    "inside": "trust_region",  # what the weight was once
    "credit": "advantage",
    "phases": "critic_schedule",
    "weights": "loss_aggregation",
    "divisor": "loss_aggregation",
    "importance": "correction",
    "needs_log_normalizers": "auxiliary_loss",
    "coef": "auxiliary_loss",
    "needs_critic": "advantage",
    "starts_at_zero": "value_head",
    "value_range": "value_head",
    "next": "kl_controller",
    "seen": "sampler",
    "keep": "gate",
    "needs_values": "gate",
    "generate": "engine",
    "compare_all": "judge",
}
MEMBERS: Mapping[Kind, tuple[str, ...]] = {
    "trust_region": ("top_k", "weight"),
    "advantage": ("needs_critic", "uses_token_rewards", "credit"),
    "kl_controller": ("first", "next"),
    "critic_schedule": ("phases",),
    "loss_aggregation": ("weights", "divisor"),
    "value_head": ("outputs", "starts_at_zero", "value_range", "values", "loss"),
    "correction": ("importance",),
    "sampler": ("choose",),
    "gate": ("needs_values", "keep"),
    "auxiliary_loss": AUXILIARY_MEMBERS,
    "reward": ("name", "score"),
    "judge": ("compare",),
    "engine": ENGINE_MEMBERS,
    "backend": tuple(name for name in vars(Backend) if not name.startswith("_")),
}


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
    if isinstance(found, Judge | JudgeSource | Compares | Grades) or _judges(found):
        return "judge"
    if isinstance(found, RewardSource) or (callable(found) and not inspect.isclass(found)):
        return "reward"
    for member, kind in TELLING.items():
        if member in dir(found):
            return kind
    raise ConfigError(
        f"{_named(found)} has the members of no axis{_nearest(found)}. Say which it is for by --kind and one "
        f"of {', '.join(KINDS)}"
    )


def _judges(found: object) -> bool:
    """Whether it is a function of one prompt, and of two answers to it or of one."""
    if not inspect.isfunction(found):
        return False
    names = set(inspect.signature(found).parameters)
    return {"prompt", "a", "b"} <= names or {"prompt", "answer"} <= names


def lacks(found: object, kind: Kind) -> str | None:
    """Which members of an axis an object has not, in words; None where it has all of them."""
    missing = [name for name in MEMBERS[kind] if name not in dir(found)]
    return f"a {type(found).__name__} without {', '.join(missing)}" if missing else None


def is_engine_class(found: object) -> bool:
    """Whether it is a class of engines, whole or with members missing: such a class is built from EngineSettings."""
    return inspect.isclass(found) and "generate" in dir(found)


def _named(found: object) -> str:
    """What a message calls an object: plain values as they are written, others by their type."""
    if found is None or isinstance(found, int | float | str):
        return shorten(found)
    return found.__name__ if inspect.isclass(found) else type(found).__name__


def _nearest(found: object) -> str:
    """The kind of which the object has the greatest share of the members, and what it lacks."""
    there = {kind: [name for name in names if name in dir(found)] for kind, names in MEMBERS.items()}
    nearest = max(KINDS, key=lambda kind: len(there[kind]) / len(MEMBERS[kind]))
    if not there[nearest] or found is None or isinstance(found, int | float | str):
        return ""
    lacks = [name for name in MEMBERS[nearest] if name not in there[nearest]]
    return f"; nearest is {nearest}, of which it has {', '.join(there[nearest])} and lacks {', '.join(lacks)}"
