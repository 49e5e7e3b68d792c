"""Which object stands for each name on the axes of the algorithm."""

from collections.abc import Callable

from nearstep.algorithm.trust_regions import BinaryKL, BinaryTV, Clip, TopKKL, TopKTV, TrustRegion, Unbounded
from nearstep.common.errors import ConfigError, shorten
from nearstep.common.plugins import load_object
from nearstep.config.ppo import PPOConfig
from nearstep.config.ppo_rules import DIVERGENCES
from nearstep.training.schedules import CriticSchedule, Decoupled, Joint, PolicyOnly, WarmUp

TV_THRESHOLD, KL_THRESHOLD = 0.15, 0.05  # 2602.04879, sanity test
DIVERGENCE_RATIO_CAP = 20.0

_REGIONS: dict[str, Callable[[PPOConfig], TrustRegion]] = {
    "clip": lambda c: Clip(c.cliprange, c.cliprange if c.cliprange_high is None else c.cliprange_high, c.dual_clip),
    "binary_tv": lambda c: BinaryTV(*_thresholds(c, TV_THRESHOLD)),
    "binary_kl": lambda c: BinaryKL(*_thresholds(c, KL_THRESHOLD)),
    "topk_tv": lambda c: TopKTV(*_thresholds(c, TV_THRESHOLD), c.divergence_top_k),
    "topk_kl": lambda c: TopKKL(*_thresholds(c, KL_THRESHOLD), c.divergence_top_k),
    "unbounded": lambda _: Unbounded(),
}


def trust_region(config: PPOConfig) -> TrustRegion:
    """The region that the settings name, or the user's own. Raises ConfigError for an object that is none."""
    if config.trust_region in _REGIONS:
        return _REGIONS[config.trust_region](config)
    region = load_object(config.trust_region, kind="trust region", error=ConfigError)
    if not isinstance(region, TrustRegion):
        raise ConfigError(
            f"trust region {config.trust_region!r} is {shorten(region)}; it needs top_k and inside(now, old, "
            "advantages)"
        )
    return region


def ratio_cap(config: PPOConfig) -> float | None:
    """The largest importance weight: as given, else 20 for divergences and none for the others."""
    if config.ratio_cap is None and config.trust_region in DIVERGENCES:
        return DIVERGENCE_RATIO_CAP
    return config.ratio_cap


def schedule(config: PPOConfig, updates: int) -> CriticSchedule:
    """When policy and critic train."""
    if config.advantage != "gae":
        return PolicyOnly(config.num_ppo_epochs)
    if config.critic == "joint":
        chosen: CriticSchedule = Joint(config.num_ppo_epochs)
        epochs = config.num_ppo_epochs
    else:
        chosen = Decoupled(config.num_ppo_epochs, config.num_vf_epochs, config.vf_update_frequency, updates)
        epochs = config.num_vf_epochs
    return WarmUp(chosen, config.vf_warmup_updates, epochs) if config.vf_warmup_updates else chosen


def vf_learning_rate(config: PPOConfig) -> float:
    """Peak step size of the critic."""
    return config.learning_rate if config.vf_learning_rate is None else config.vf_learning_rate


def _thresholds(config: PPOConfig, default: float) -> tuple[float, float]:
    low, high = config.divergence_low, config.divergence_high
    return (default if low is None else low, default if high is None else high)
